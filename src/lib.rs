#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(loom, warn(rustdoc::broken_intra_doc_links, reason = "what needs a clock is not in the models"))]

mod activation;
mod anchor;
mod arch;
mod arity;
#[cfg(feature = "audit")]
mod audit;
mod chain;
mod checked;
mod control;
mod errno;
#[doc(hidden)]
pub mod faults;
mod fiber;
mod foreign_call;
mod foreign_function;
mod foreign_value;
#[cfg(all(unix, not(loom), not(miri)))]
mod fork;
mod handle;
mod handle_table;
mod handshake;
mod home;
mod leaf;
mod leaks;
mod mailbox;
mod mutator;
#[cfg(feature = "libffi")]
mod occupancy;
mod pause;
mod pin;
mod pointers;
mod post;
mod record;
mod registry;
mod root;
mod root_stack;
mod safepoint;
mod sample;
mod scope;
mod state;
#[cfg_attr(
    not(all(feature = "explore", not(loom))),
    allow(dead_code, unreachable_pub, reason = "public with the feature, and of use to nobody without it")
)]
mod steps;
mod sync;
mod thread;
mod timing;
mod transition;
mod unwind;
mod upcall;
mod vm;
mod watch;
mod world;

#[cfg(feature = "libffi")]
pub mod dynamic;
#[cfg(all(feature = "explore", not(loom)))]
pub mod explore;
pub mod guide;
pub mod layout;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use activation::{RelocationError, StackEnd};
pub use anchor::Anchor;
#[cfg(feature = "audit")]
pub use audit::{Audit, AuditLog};
pub use chain::{ChainDamage, ChainError};
pub use control::MachineState;
pub use errno::Errno;
pub use fiber::Fiber;
pub use foreign_call::{Foreign, ForeignCall, InteriorNul};
pub use foreign_function::{ForeignFunction, NullFunction};
pub use foreign_value::{ForeignValue, NoAddresses};
#[cfg(all(unix, not(loom), not(miri)))]
pub use fork::Forked;
pub use handle::{Handle, RawHandle, WeakHandle};
pub use handle_table::HandleError;
pub use leaf::{Leaf, LeafSite, LentBytes};
pub use leaks::{LeakSite, Leaks};
pub use mailbox::PostError;
pub use mutator::{HandOverError, Mutator, NotedLock};
pub use pause::{Activation, Activations, Declared, StoppedMutator, StoppedWorld};
pub use pin::{PinId, Pinner, UnpinError};
pub use post::Poster;
pub use record::FiberError;
pub use registry::{AttachError, Early, Stragglers};
pub use root::{Argument, Pinned, ReleasableRoot, ReleaseError, ReleaseToken, Root};
pub use sample::{Busy, Sample, SampledActivation, sample_thread};
pub use scope::{Local, Scope};
pub use state::State;
pub use sync::FenceStrategy;
pub use timing::{Histogram, Timings};
pub use unwind::Thrown;
pub use upcall::{
    Aborting, FallbackOnly, Throwing, UpcallBody, UpcallClosure, upcall_fn, upcall_fn_or, upcall_fn_unwind,
};
pub use vm::{
    ArgumentError, ArgumentPlan, Capture, Crossing, ErrorPolicy, FrameKind, PauseWait, Report, Residence,
    RootVisitor, Segment, Slot, StackScanner, Straggler, UpcallError, UpcallRefused, Vm,
};
#[cfg(feature = "audit")]
pub use vm::{Fault, Finding, FoundIn, FoundSlot, Sighting};
pub use world::{Attachment, DetachError, InterruptError, World, WorldBuilder};
