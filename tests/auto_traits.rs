//! Which types may go to another thread, and which may be looked at from one. Checked when this is compiled.
//!
//! A mutator is its thread's, and so is all that proves a state of it: the thread is in the proof. A world, and what only names one, may go anywhere.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use core::panic::{RefUnwindSafe, UnwindSafe};
use reentry::testkit::{Ref, TestVm};
use reentry::{
    Activation, Activations, Anchor, Argument, ArgumentError, AttachError, Attachment, ChainError, Declared,
    DetachError, Errno, FenceStrategy, Foreign, ForeignCall, HandOverError, InteriorNul, Leaf, LeafSite,
    LentBytes, Mutator, NullFunction, Pinned, Pinner, RelocationError, Report, Root, Slot, StoppedMutator,
    StoppedWorld, UpcallClosure, World, WorldBuilder,
};
use reentry::{
    Handle, HandleError, LeakSite, Leaks, Local, PinId, RawHandle, ReleasableRoot, ReleaseError,
    ReleaseToken, Scope, UnpinError, WeakHandle,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};

/// What the assertions below allow works: a world is used from a thread that it did not come from.
#[test]
fn a_world_is_paused_from_a_thread_it_was_sent_to() {
    let world = World::new(TestVm::new());
    let clone = world.clone();
    let seen = std::thread::spawn(move || clone.pause(|stopped| stopped.mutators().count())).join();
    assert_eq!(seen.unwrap(), world.attached());
}

// Anyone's.
assert_impl_all!(World<TestVm>: Send, Sync, Clone);
assert_impl_all!(WorldBuilder<TestVm>: Send, Sync);
assert_impl_all!(FenceStrategy: Send, Sync);
assert_impl_all!(Anchor: Send, Sync);
assert_impl_all!(Errno: Send, Sync);
assert_impl_all!(AttachError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(DetachError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(ArgumentError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(HandOverError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(RelocationError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(NullFunction: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(InteriorNul: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(ChainError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(LeafSite: Send, Sync);

// An owner of pins goes wherever references may go: it names no thread.
assert_impl_all!(Pinner<Ref>: Send, Sync);
assert_not_impl_any!(Pinner<*const ()>: Send, Sync);

// Its thread's.
assert_not_impl_any!(Mutator<TestVm>: Send, Sync);
assert_not_impl_any!(Attachment<TestVm>: Send, Sync, Clone);
assert_not_impl_any!(ForeignCall<'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(Foreign<'static, 'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(Root<'static, Ref>: Send, Sync);
assert_not_impl_any!(Argument<'static, u64>: Send, Sync);
assert_not_impl_any!(Argument<'static, [u8]>: Send, Sync);
assert_not_impl_any!(Leaf<'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(LentBytes<'static>: Send, Sync);

// The stopper's thread's.
assert_not_impl_any!(StoppedWorld<'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(StoppedMutator<'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(Activations<'static, TestVm>: Send, Sync);
assert_not_impl_any!(Activation<'static, TestVm>: Send, Sync);
assert_not_impl_any!(Declared<'static, Ref>: Send, Sync);
assert_not_impl_any!(Slot<'static, Ref>: Send, Sync, Clone);
// A report may hold a panic's payload, which is `Send` and not `Sync`.
assert_not_impl_any!(Report<'static>: Send, Sync);

// A pin's token holds a copy of the reference and nothing else; the reference may go to other threads (`Vm::Ref: Send`), so the token may. What keeps the object in
// place is the call, which the token borrows.
assert_impl_all!(Pinned<'static, Ref>: Send, Sync);
assert_not_impl_any!(Pinned<'static, *const ()>: Send, Sync);

// A closure that C may call from any thread goes where its captures and its fallback may go.
type Closure<R, F> = UpcallClosure<'static, TestVm, (i32,), R, F>;
assert_impl_all!(Closure<i32, u8>: Send, Sync);
assert_not_impl_any!(Closure<i32, *const ()>: Send, Sync);
assert_not_impl_any!(Closure<*const (), u8>: Send, Sync);

// A handle goes wherever references may go, and is let go of there; so does its word, which is a number.
assert_impl_all!(Handle<Ref>: Send, Sync);
assert_not_impl_any!(Handle<Ref>: Clone, Copy);
assert_not_impl_any!(Handle<*const ()>: Send, Sync);
assert_impl_all!(WeakHandle<Ref>: Send, Sync);
assert_not_impl_any!(WeakHandle<Ref>: Clone, Copy);
assert_not_impl_any!(WeakHandle<*const ()>: Send, Sync);
assert_impl_all!(RawHandle: Send, Sync, Copy, UnwindSafe, RefUnwindSafe);
assert_impl_all!(PinId: Send, Sync, Copy);
assert_impl_all!(ReleaseToken: Send, Sync, Copy);
assert_impl_all!(HandleError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(UnpinError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(ReleaseError: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(Leaks: Send, Sync, Clone);
assert_impl_all!(LeakSite: Send, Sync, Copy);

// A scope and its locals are their thread's.
assert_not_impl_any!(Scope<'static, TestVm>: Send, Sync, Clone);
assert_not_impl_any!(Local<'static, Ref>: Send, Sync);
assert_not_impl_any!(ReleasableRoot<'static, Ref>: Send, Sync);
