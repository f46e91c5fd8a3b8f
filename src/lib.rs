#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod activation;
mod anchor;
mod arch;
mod arity;
mod chain;
mod checked;
mod control;
mod errno;
#[doc(hidden)]
pub mod faults;
mod foreign_call;
mod foreign_function;
mod foreign_value;
mod handle;
mod handle_table;
mod home;
mod leaf;
mod leaks;
mod mutator;
mod pause;
mod pin;
mod pointers;
mod record;
mod registry;
mod root;
mod root_stack;
mod safepoint;
mod scope;
mod state;
mod sync;
mod thread;
mod transition;
mod unwind;
mod upcall;
mod vm;
mod world;

pub mod guide;
pub mod layout;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use activation::{RelocationError, StackEnd};
pub use anchor::Anchor;
pub use chain::{ChainDamage, ChainError};
pub use control::MachineState;
pub use errno::Errno;
pub use foreign_call::{Foreign, ForeignCall, InteriorNul};
pub use foreign_function::{ForeignFunction, NullFunction};
pub use foreign_value::{ForeignValue, NoAddresses};
pub use handle::{Handle, RawHandle, WeakHandle};
pub use handle_table::HandleError;
pub use leaf::{Leaf, LeafSite, LentBytes};
pub use leaks::{LeakSite, Leaks};
pub use mutator::{HandOverError, Mutator};
pub use pause::{Activation, Activations, Declared, StoppedMutator, StoppedWorld};
pub use pin::{PinId, Pinner, UnpinError};
pub use registry::AttachError;
pub use root::{Argument, Pinned, ReleasableRoot, ReleaseError, ReleaseToken, Root};
pub use scope::{Local, Scope};
pub use state::State;
pub use sync::FenceStrategy;
pub use unwind::Thrown;
pub use upcall::{
    Aborting, FallbackOnly, Throwing, UpcallBody, UpcallClosure, upcall_fn, upcall_fn_or, upcall_fn_unwind,
};
pub use vm::{
    ArgumentError, ArgumentPlan, Capture, Crossing, ErrorPolicy, FrameKind, Report, Residence, RootVisitor,
    Segment, Slot, StackScanner, UpcallError, UpcallRefused, Vm,
};
pub use world::{Attachment, DetachError, World, WorldBuilder};
