//! The guide: what the API documentation of single items does not tell.

#[doc = include_str!("guide/jumps.md")]
pub mod jumps {}

#[doc = include_str!("guide/errors.md")]
pub mod errors {}

#[doc = include_str!("guide/threads.md")]
pub mod threads {}
