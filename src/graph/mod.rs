//! Microsoft Graph: its JSON in its names, and the only code that talks to it.

pub mod client;
pub mod draft;
pub mod resource;
