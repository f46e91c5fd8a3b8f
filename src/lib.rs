#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod activation;
mod anchor;
mod arch;
mod arity;
mod chain;
mod checked;
mod errno;
#[doc(hidden)]
pub mod faults;
mod foreign_call;
mod foreign_value;
mod home;
mod leaf;
mod mutator;
mod pause;
mod pin;
mod pointers;
mod record;
mod registry;
mod root;
mod root_stack;
mod safepoint;
mod state;
mod sync;
mod thread;
mod transition;
mod unwind;
mod upcall;
mod vm;
mod world;

pub mod layout;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use activation::{RelocationError, StackEnd};
pub use anchor::Anchor;
pub use chain::{ChainDamage, ChainError};
pub use errno::Errno;
pub use foreign_call::{Foreign, ForeignCall, ForeignFunction, InteriorNul, NullFunction};
pub use foreign_value::{ForeignValue, NoAddresses};
pub use leaf::{Leaf, LeafSite, LentBytes};
pub use mutator::{HandOverError, Mutator};
pub use pause::{Activation, Activations, Declared, StoppedMutator, StoppedWorld};
pub use pin::Pinner;
pub use registry::AttachError;
pub use root::{Argument, Pinned, Root};
pub use state::State;
pub use sync::FenceStrategy;
pub use upcall::{UpcallBody, UpcallClosure, upcall_fn, upcall_fn_or};
pub use vm::{
    ArgumentError, ArgumentPlan, Capture, Crossing, FrameKind, Report, Residence, RootVisitor, Segment, Slot,
    StackScanner, Vm,
};
pub use world::{Attachment, DetachError, World, WorldBuilder};
