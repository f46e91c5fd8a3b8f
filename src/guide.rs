//! The guide: what the API documentation of single items does not tell.
//!
//! Read [`start`] first. Then what your VM needs: [`references`], [`errors`], [`jumps`], [`threads`], `dynamic` (with the feature `libffi`), [`checked`], `audit` and `explore` (with the features of those names); and [`models`] to explore your own locks and buffers over the crate's protocol. What went wrong in other runtimes, and what finds it, is in [`museum`]. When something went wrong in yours, look it up in [`misuse`].

#[doc = include_str!("guide/start.md")]
pub mod start {}

#[doc = include_str!("guide/references.md")]
pub mod references {}

#[doc = include_str!("guide/checked.md")]
pub mod checked {}

#[cfg(feature = "audit")]
#[doc = include_str!("guide/audit.md")]
pub mod audit {}

#[doc = include_str!("guide/misuse.md")]
pub mod misuse {}

#[doc = include_str!("guide/jumps.md")]
pub mod jumps {}

#[doc = include_str!("guide/errors.md")]
pub mod errors {}

#[doc = include_str!("guide/threads.md")]
pub mod threads {}

#[doc = include_str!("guide/museum.md")]
pub mod museum {}

#[cfg(all(feature = "explore", not(loom)))]
#[doc = include_str!("guide/explore.md")]
pub mod explore {}

#[cfg(feature = "libffi")]
#[doc = include_str!("guide/dynamic.md")]
pub mod dynamic {}

#[doc = include_str!("guide/models.md")]
pub mod models {}
