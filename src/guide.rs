//! The guide: what the API documentation of single items does not tell.

#[doc = include_str!("guide/threads.md")]
pub mod threads {}
