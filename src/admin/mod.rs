//! Status page, JSON API, /metrics, /livez, /readyz.
