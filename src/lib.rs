//! The crossing between a garbage-collected heap and C, for authors of language VMs.
//!
//! ```text
//! managed     your VM --.                              .--> goes on; what it gave C
//!                       | ForeignCall::run             |    is alive and current
//! C                     '--> qsort --.          .--> qsort returns
//!                                    | upcall   |
//! managed                            '--> compare: allocates, the heap is full
//!                                           |
//! collector                                 '--> Mutator::pause: finds the roots of
//!                                                both managed parts, moves objects
//! ```
//!
//! A VM with a garbage-collected heap calls C. C may block. It may call back into the VM, on this thread
//! or another, nested to any depth. The callback may allocate, collect, move objects, move the VM's
//! stack, and fail. This crate keeps each of these crossings correct, for any collector that implements
//! one stack-scanning trait. It is not a collector, not a heap, not a JIT and not a generator of
//! bindings.
//!
//! # Start with these five types
//!
//! | type | what it is | your first use of it |
//! |---|---|---|
//! | [`Vm`], with [`StackScanner`] | the two traits a VM implements: what a reference is, and how frames are walked | `impl Vm for MyVm` |
//! | [`World`] | one VM and all its threads | [`World::new`], then [`attach`](World::attach) on each thread |
//! | [`Mutator`] | the proof that this thread may touch the heap | [`poll`](Mutator::poll) in loops, [`pause`](Mutator::pause) to collect |
//! | [`ForeignCall`] | one call of C, with its arguments | [`Mutator::foreign_call`], [`root`](ForeignCall::root), [`run`](ForeignCall::run) |
//! | [`UpcallClosure`], or the function [`upcall_fn`] | a closure, or a function, that C can call | [`UpcallClosure::new`] |
//!
//! The collector's side is [`StoppedWorld`] and [`RootVisitor`]: a pause gives the one, and the collector
//! implements the other.
//!
//! # Then read
//!
//! - [`guide::start`]: which kind of host your VM is, and a whole VM in six steps;
//! - [`guide::recipes`]: a task a VM author has, each in a few lines;
//! - [`guide::references`]: which plan for which argument, and what outlives a call;
//! - [`guide::glossary`]: the words;
//! - [`guide`] has the other chapters: errors, threads and deadlocks, `longjmp`, checks, and every
//!   mistake with its message.
//!
//! Costs, commands, limits and targets are in the
//! [README](https://docs.rs/crate/reentry/latest).
//!
//! # An example
//!
//! The VM is that of the `testkit`, a feature. C's `strcmp` reads two strings in a heap that moves:
//!
#![cfg_attr(feature = "testkit", doc = "```")]
#![cfg_attr(not(feature = "testkit"), doc = "```ignore")]
//! use core::ffi::{c_char, c_int};
//! use reentry::{World, testkit::TestVm};
//!
//! unsafe extern "C" {
//!     fn strcmp(a: *const c_char, b: *const c_char) -> c_int;
//! }
//!
//! let world = World::new(TestVm::new());
//! let mut mutator = world.attach()?; // this thread is managed now
//! let heap = world.vm().heap();
//! let (apple, banana) = (heap.alloc(&[], b"apple\0"), heap.alloc(&[], b"banana\0"));
//!
//! let mut call = mutator.foreign_call();
//! let (apple, banana) = (call.pin(apple)?, call.pin(banana)?);
//! let (a, b) = (heap.payload(apple.get())?, heap.payload(banana.get())?);
//! // SAFETY: two texts that end with a NUL, pinned until the call is dropped.
//! let order = call.run(|| unsafe { strcmp(a.cast(), b.cast()) });
//! assert!(order < 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(loom, warn(rustdoc::broken_intra_doc_links, reason = "what needs a clock is not in the models"))]

/// The README's program runs as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod activation;
mod anchor;
mod arch;
mod arity;
#[cfg(all(unix, not(loom), not(miri)))]
mod atfork;
mod attach;
#[cfg(feature = "audit")]
mod audit;
mod chain;
mod checked;
mod control;
mod errno;
mod exit;
#[doc(hidden)]
pub mod faults;
mod fiber;
mod foreign_call;
mod foreign_function;
mod foreign_value;
#[cfg(all(unix, not(loom), not(miri)))]
mod fork;
mod global_lock;
mod hand_over;
mod handle;
mod handle_table;
mod handshake;
mod home;
mod leaf;
mod leaks;
mod mailbox;
mod mutator;
mod nesting;
#[cfg(feature = "libffi")]
mod occupancy;
mod os_thread;
mod patience;
mod pause;
mod pin;
mod pointers;
mod post;
mod process;
mod record;
mod registry;
mod results;
mod root;
mod root_stack;
mod safepoint;
mod sample;
mod scope;
mod signals;
mod state;
#[cfg_attr(
    not(all(feature = "explore", not(loom))),
    allow(dead_code, unreachable_pub, reason = "public with the feature, and of use to nobody without it")
)]
mod steps;
mod stress;
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
pub use attach::DetachError;
#[cfg(feature = "audit")]
pub use audit::{Audit, AuditLog};
pub use chain::{ChainDamage, ChainError};
pub use checked::Region;
pub use control::MachineState;
pub use errno::Errno;
pub use fiber::Fiber;
pub use foreign_call::{Foreign, ForeignCall, InteriorNul};
pub use foreign_function::{ForeignFunction, NullFunction};
pub use foreign_value::{ForeignValue, NoAddresses};
#[cfg(all(unix, not(loom), not(miri)))]
pub use fork::Forked;
pub use global_lock::GlobalLock;
pub use hand_over::HandOverError;
pub use handle::{Handle, RawHandle, WeakHandle};
pub use handle_table::HandleError;
pub use leaf::{Leaf, LeafSite, LentBytes};
pub use leaks::{LeakSite, Leaks};
pub use mailbox::PostError;
pub use mutator::{Mutator, NotedLock};
pub use os_thread::ThreadLabel;
pub use pause::{Activation, Activations, Declared, StoppedMutator, StoppedWorld};
pub use pin::{PinId, Pinner, UnpinError};
pub use post::Poster;
pub use record::FiberError;
pub use registry::{AttachError, Early, Stragglers};
pub use root::{Argument, Pinned, ReleasableRoot, ReleaseError, ReleaseToken, Root};
pub use sample::{Busy, Sample, SampledActivation, sample_thread};
pub use scope::{Local, Scope};
pub use signals::can_call_in;
pub use state::State;
pub use stress::{Stress, StressWork};
pub use sync::FenceStrategy;
pub use timing::{Histogram, Timings};
pub use unwind::Thrown;
pub use upcall::{
    Aborting, Always, FallbackOnly, Throwing, UpcallBody, UpcallClosure, upcall_fn, upcall_fn_or,
    upcall_fn_unwind,
};
pub use vm::{
    ArgumentError, ArgumentPlan, Capture, Crossing, ErrorPolicy, ExceptionText, FrameKind, Group, Holder,
    PauseInForce, PauseWait, Report, Residence, RootVisitor, Segment, Slot, StackScanner, StopWait,
    Straggler, UpcallError, UpcallOrigin, UpcallRefused, Vm, Waiting, Wanted,
};
#[cfg(feature = "audit")]
pub use vm::{Fault, Finding, FoundIn, FoundSlot, Sighting};
pub use world::{Attachment, InterruptError, World, WorldBuilder};
