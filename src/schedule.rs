//! What to deliver next, and when. Knows no clock, no disk and no network. ○
