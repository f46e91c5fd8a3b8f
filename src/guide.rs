//! The guide: what the API documentation of single items does not tell.
//!
//! | chapter | for |
//! |---|---|
//! | [`start`] | which kind of host you are, and a VM in six steps: read it first |
//! | [`recipes`] | ten tasks of a VM author, each in a few lines |
//! | [`glossary`] | the words of the crate |
//! | [`references`] | which plan for which argument; locals, handles, pinners |
//! | [`errors`] | panics, exceptions and refusals across the boundary |
//! | [`blocking`] | what a managed thread must not wait for, and how a thread can end in C |
//! | [`threads`] | threads, fibers, signals, shutdown, fork, interrupts, and who is late |
//! | [`jumps`] | `longjmp` and C++ exceptions past upcalls |
//! | `dynamic` (feature `libffi`) | functions and callbacks that a program declares while it runs |
//! | [`checked`] | what debug builds look at, and what a VM provides for it |
//! | `audit` (feature `audit`) | finding undead roots in your own scanner and collector |
//! | `explore` (feature `explore`) | your scenario, with a stop at every micro-step |
//! | [`models`] | loom models of your own host, over the crate's protocol |
//! | [`museum`] | faults of other runtimes, and the tool that catches each |
//! | [`misuse`] | every mistake, what is said of it, and the test that shows it |

#[doc = include_str!("guide/start.md")]
pub mod start {}

#[doc = include_str!("guide/recipes.md")]
pub mod recipes {}

#[doc = include_str!("guide/glossary.md")]
pub mod glossary {}

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

#[doc = include_str!("guide/blocking.md")]
pub mod blocking {}

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
