//! The two traits a VM implements, and what they speak of: segments, slots, plans, reports.
//!
//! A VM implements [`Vm`] (what its references are, what it can pin, its hooks) and [`StackScanner`] (how its frames are walked). One
//! trait set serves three kinds of host:
//!
//! | host | anchor | segment |
//! |---|---|---|
//! | interpreter with its own movable operand stack | virtual: [`ForeignCall::at`](crate::ForeignCall::at) | from `anchor` to [`older`](Segment::older)`.sp` |
//! | JIT with stack maps on the native stack | `pc` is the return address, frames by `fp` | from `anchor` to [`entry_sp`](Segment::entry_sp) |
//! | conservative collector | machine, [`Capture::Registers`] | [`words`](Segment::words) and [`registers`](Segment::registers) |

mod exception;
#[cfg(feature = "audit")]
mod finding;
mod report;
mod waits;

pub use exception::ExceptionText;
use exception::write_at_most;
#[cfg(feature = "audit")]
pub use finding::{Fault, Finding, FoundIn, FoundSlot, Sighting};
pub use report::{Report, UpcallOrigin};
pub use waits::{Group, Holder, PauseInForce, PauseWait, StopWait, Straggler, Waiting, Wanted};

use crate::anchor::Anchor;
use crate::faults::Faults;
use crate::unwind;
use core::any::Any;
use core::fmt;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::NonNull;

/// A language VM: its reference type, its per-mutator data, what it accepts as an argument of a foreign call, its hooks.
///
/// Calls come from several threads at once. Each method says in which state it is called and what it may do.
pub trait Vm: Sized + Send + Sync + 'static {
    /// A reference to a heap object: one machine word at most (checked at compile time). Tagged words and compressed references will do.
    ///
    /// The crate copies it and hands out slots that hold it; it never looks inside.
    type Ref: Copy + Send + 'static;

    /// What the VM keeps for each mutator: its operand stack, its allocation buffer.
    ///
    /// Reached from its own thread through [`Mutator::local`](crate::Mutator::local) and, in a pause, from the
    /// stopper's through [`StoppedMutator::local`](crate::StoppedMutator::local); never by both at once, hence `Send` and not `Sync`.
    type Local: Send + 'static;

    /// The VM's own exception: what an upcall that is [`Throwing`](crate::Throwing) ends with, and what [`ForeignCall::try_run`](crate::ForeignCall::try_run) gives on
    /// the other side of the foreign code. `core::convert::Infallible` for a VM without.
    ///
    /// While it is carried, collections happen: a heap object in it is held by a global handle, not by a bare reference.
    type Exception: fmt::Debug + Send + 'static;

    /// How much of the machine a crossing records when the VM gives no anchor of its own. See [`Capture`].
    const CAPTURE: Capture = Capture::Anchor;

    /// Whether the durations of foreign calls and stops are measured, for [`World::timings`](crate::World::timings). Costs two readings of the clock for each call; nothing
    /// if `false`, the default.
    const TIMED: bool = false;

    /// Makes the data of a mutator that is being attached. Called on its thread, before it is a mutator: may allocate and block, must not
    /// touch the heap. May panic; then the thread is not attached. No signal is delivered to the thread meanwhile, so that a handler that makes an upcall finds the thread
    /// attached or not, but for those that an instruction causes (SIGSEGV, SIGFPE and the like); a thread that is started here inherits that mask.
    fn attach(&self) -> Self::Local;

    /// Says whether `reference` can be an argument of a foreign call under `plan`.
    ///
    /// Called for each root and pin as it is declared, on the mutator's thread, managed. Must not poll or collect. A collector that cannot pin
    /// answers [`ArgumentError::CannotPin`] here: asking for more than the VM supports is an error at the call, not a hang in a
    /// collector. The default accepts everything and costs nothing.
    ///
    /// # Errors
    ///
    /// What the VM finds wrong with the argument.
    #[inline(always)]
    fn admit(&self, reference: Self::Ref, plan: ArgumentPlan) -> Result<(), ArgumentError> {
        let _ = (reference, plan);
        Ok(())
    }

    /// Runs just before a mutator becomes foreign, while it is managed still: on the way into a foreign
    /// call, on the way back from an upcall, and when an attachment ends. A VM with a global lock
    /// releases it here ([`GlobalLock`](crate::GlobalLock)).
    ///
    /// Each run is the pair of one of [`entering_managed`](Self::entering_managed) on the same thread,
    /// whichever way the mutator leaves: also where foreign code jumps, where an upcall is refused, and
    /// where a thread exits with a leaked [`Attachment`](crate::Attachment). At the exit of a thread it
    /// runs when the thread's thread-locals are gone, so it must use none, nor
    /// [`std::thread::current`]. (On Unix; elsewhere it does not run for a leaked attachment.)
    ///
    /// Must not poll, allocate on the heap or panic (a panic aborts the process). The default costs nothing.
    #[inline(always)]
    fn leaving_managed(&self, crossing: Crossing) {
        let _ = crossing;
    }

    /// Runs just before a mutator becomes managed, while it is foreign still: on the way back from a
    /// foreign call, on the way into an upcall, and when a thread [attaches](crate::World::attach)
    /// itself, after [`attach`](Self::attach). A VM with a global lock takes it here.
    ///
    /// A foreign thread that attaches with its first upcall is told of the upcall alone. In the child of
    /// a [fork](crate::Mutator::fork) the thread is managed still: what it took before, it holds.
    ///
    /// May block: a pause does not wait for this thread. Must not touch the heap, detach this thread, drop what keeps the world alive, or panic (a panic aborts the process). The default
    /// costs nothing.
    #[inline(always)]
    fn entering_managed(&self, crossing: Crossing) {
        let _ = crossing;
    }

    /// Makes an exception of a refused upcall: a VM turns [`UpcallRefused::StackExhausted`] into its stack overflow. It goes on as if the upcall had thrown it:
    /// [`ForeignCall::try_run`](crate::ForeignCall::try_run) gives it, at whatever depth, and [`ForeignCall::run`](crate::ForeignCall::run) lets it pass.
    ///
    /// Called on the mutator's thread, managed, when the foreign call, or the pause, is over. Must not poll. The default, `None`, lets the call panic with the refusal's text.
    fn exception_for(&self, refused: &UpcallRefused) -> Option<Self::Exception> {
        let _ = refused;
        None
    }

    /// Writes what an exception says, for reports and messages. The default writes it as `Debug` does; a VM whose
    /// exception has a text for people lets `Display` write it. At most 500 characters of it are used.
    ///
    /// Called on the thread it happened on, in any state. Must not panic.
    ///
    /// # Errors
    ///
    /// The formatter's.
    fn write_exception(exception: &Self::Exception, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{exception:?}")
    }

    /// Returns the bytes of an object, to lend to foreign code in a leaf call without copying them: see [`Leaf::lend`](crate::Leaf::lend). The default
    /// lends nothing.
    ///
    /// Called on the mutator's thread, managed, in a leaf call. The bytes stay where they are, valid for reads, until the mutator's next safepoint; a leaf call has
    /// none. Must not poll, allocate on the heap or collect.
    fn bytes(&self, reference: Self::Ref) -> Option<NonNull<[u8]>> {
        let _ = reference;
        None
    }

    /// Says whether `address` lies in an object of the heap, and whether that can move. For the pointer check of checked mode, which calls it for each address that foreign
    /// code is given; the default knows no address, so that nothing is reported.
    ///
    /// Called on the mutator's thread, managed, in debug builds and with the feature `checked` only. Any number may be asked about. Must not poll, allocate on the
    /// heap or collect.
    fn locate(&self, address: usize) -> Option<Residence> {
        let _ = address;
        None
    }

    /// Says whether `address` lies in the object of `reference`, one past its end included if [`locate`](Self::locate) includes that. For the pointer check, as `locate`.
    fn covers(&self, reference: Self::Ref, address: usize) -> bool {
        let _ = (reference, address);
        false
    }

    /// Receives what happened that no caller can be told of. The default writes it to standard error, and goes on where that cannot be written to.
    ///
    /// Called on the thread it happened on, in any state: must not touch the heap, poll or call back into the crate. Must not panic: foreign frames may be next, so a panic
    /// there ends the process, and so does one from the drop of an exception that ends with the report. A report cannot detach its thread's mutator while the crate works on it: detaching is
    /// refused then.
    fn report(&self, report: &Report<'_>) {
        unwind::say(report);
    }
}

/// Gives a report to the VM: the one place that does. A report that panics ends the process (R3).
pub(crate) fn tell<V: Vm>(vm: &V, report: &Report<'_>) {
    unwind::contained("`Vm::report`", || vm.report(report));
}

/// How a VM's frames are walked: the one thing a collector must implement.
///
/// # Safety
///
/// The crate trusts an implementation with the liveness of every object. It must keep these obligations:
///
/// - **S1 Complete.** [`scan_segment`](Self::scan_segment) reports every reference that managed code of the segment may use after the segment runs again,
///   each in the slot it will be read from. What the crate's own guards declare is reported by the crate and may be reported
///   again. Whether an argument of a foreign call is live *after* the call is the VM's affair; that it is live *during* the call is the guard's.
/// - **S2 Exact slots.** Each slot reported is valid for reads and writes of a `Ref` during the pause and holds one.
/// - **S3 Repeatable.** Scanning has no side effects that a second scan in the same pause could see; some collectors ask twice.
/// - **S4 Inert.** Scanning neither allocates on the heap, nor polls, nor takes a lock that a mutator may hold while stopped or
///   foreign. It may panic: the pause ends and the panic goes to whoever paused.
/// - **S5 Only the segment.** It reads frames of this segment alone; frames below belong to foreign code or to another segment.
/// - **S6 No faults.** `FAULTS` is [`Faults::NONE`](crate::faults::Faults::NONE) except in a test that wants the protection gone.
/// - **S7 Anchors are claims.** The pc, sp and fp given with [`ForeignCall::at`](crate::ForeignCall::at), [`Mutator::poll_at`](crate::Mutator::poll_at) and
///   [`Mutator::pause_at`](crate::Mutator::pause_at) come from safe code. A scanner checks them (against its own stack, its code map, or
///   [`Segment::words`], which is the crate's own) before it relies on them; a captured anchor needs no check.
pub unsafe trait StackScanner: Vm {
    /// Test-only: protections taken away. See [`faults`](crate::faults).
    #[doc(hidden)]
    const FAULTS: Faults = Faults::NONE;

    /// Test-only: the address function of the audit that a world has unless it was made with one of its own.
    #[doc(hidden)]
    #[cfg(feature = "audit")]
    fn audited(&self) -> Option<fn(Self::Ref) -> usize> {
        None
    }

    /// Reports the references of one segment of one stopped mutator, newest frame first.
    ///
    /// Called on the stopper's thread, during a pause, once for each segment of each mutator and enumeration.
    fn scan_segment(
        &self,
        local: &Self::Local,
        segment: &Segment<'_>,
        visitor: &mut dyn RootVisitor<Self::Ref>,
    );
}

/// Receives the roots of a stopped world. A collector implements it.
pub trait RootVisitor<R> {
    /// A slot that holds a live reference. The object may move if the slot is updated.
    fn slot(&mut self, slot: Slot<'_, R>);

    /// A live reference whose object must not move: foreign code has its address.
    fn pinned(&mut self, reference: R);

    /// A live reference; neither its object nor any object reachable from it may move.
    fn transitively_pinned(&mut self, reference: R);

    /// The slot of a [`WeakHandle`](crate::WeakHandle): it does not keep its object alive.
    ///
    /// The default takes it for a live reference, so that a collector that knows nothing of weak handles keeps their objects. One that overrides this has an
    /// obligation: before the pause ends, and once it knows which objects live, it calls [`StoppedWorld::update_weak`](crate::StoppedWorld::update_weak), which
    /// tells each weak handle where its object is now or clears it. Otherwise the handle goes on to give a reference to what was freed or has moved.
    fn weak(&mut self, slot: Slot<'_, R>) {
        self.slot(slot);
    }

    /// The slots that follow are of this frame, walked at this pc. The default does nothing.
    ///
    /// A scanner may say so before the slots of each frame, for whoever must name a slot: the audit (feature `audit`) gives the pcs of two collections by it. `sp` and `fp` are the frame's own,
    /// 0 where there is none.
    fn frame(&mut self, frame: Anchor) {
        let _ = frame;
    }
}

/// The word a collector may rewrite when the object it refers to moves.
pub struct Slot<'p, R> {
    address: NonNull<R>,
    _pause: PhantomData<&'p mut R>,
}

impl<R: Copy> Slot<'_, R> {
    /// Makes a slot of the address of a reference.
    ///
    /// # Safety
    ///
    /// `address` is valid for reads and writes of an `R`, is aligned, and holds one, for as long as the slot is used (obligation S2).
    #[inline]
    #[must_use]
    pub unsafe fn new(address: NonNull<R>) -> Self {
        Self { address, _pause: PhantomData }
    }

    /// Reads the reference.
    #[inline]
    #[must_use]
    pub fn load(&self) -> R {
        // SAFETY: S2, promised to `new`.
        unsafe { self.address.as_ptr().read() }
    }

    /// Writes the object's new address.
    #[inline]
    pub fn store(&mut self, reference: R) {
        // SAFETY: S2, promised to `new`.
        unsafe { self.address.as_ptr().write(reference) }
    }

    /// Returns the slot's own address, which identifies it.
    #[inline]
    #[must_use]
    pub fn address(&self) -> usize {
        self.address.addr().get()
    }
}

impl<R> fmt::Debug for Slot<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({:p})", self.address)
    }
}

/// The stack range of one activation of a stopped mutator: one contiguous run of managed frames.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'p> {
    pub(crate) anchor: Anchor,
    pub(crate) older: Option<Anchor>,
    pub(crate) machine_sp: usize,
    pub(crate) entry_sp: usize,
    /// The stack of the mutator's thread; empty where it is not known.
    pub(crate) thread_stack: (usize, usize),
    pub(crate) registers: &'p [usize],
    pub(crate) depth: usize,
    pub(crate) newest: bool,
    pub(crate) kind: FrameKind,
    pub(crate) call_site: Option<&'static Location<'static>>,
}

impl<'p> Segment<'p> {
    /// Where the walk starts: the newest managed frame, as the record names it.
    #[must_use]
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// The anchor of the next older activation, or `None` for the oldest. Where both anchors are in one managed stack, this segment
    /// ends where that one's newest frame ends.
    #[must_use]
    pub fn older(&self) -> Option<Anchor> {
        self.older
    }

    /// The machine stack pointer at which this activation was entered; its native frames lie below (0 where the thread was
    /// attached without a known stack base, or on a stack that is not its own).
    #[must_use]
    pub fn entry_sp(&self) -> usize {
        self.entry_sp
    }

    /// The callee-saved registers at the crossing, if [`Capture::Registers`] asked for them; else empty.
    #[must_use]
    pub fn registers(&self) -> &'p [usize] {
        self.registers
    }

    /// How many activations of this mutator are older.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Says whether no activation of this mutator is newer.
    #[must_use]
    pub fn is_newest(&self) -> bool {
        self.newest
    }

    /// What the mutator was doing at the anchor.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Where in the VM's source the crossing stands.
    #[must_use]
    pub fn call_site(&self) -> Option<&'static Location<'static>> {
        self.call_site
    }
}

/// How an object of the heap keeps its address: the answer of [`Vm::locate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Residence {
    /// It may move at a collection: foreign code needs a pin.
    Movable,
    /// It stays where it is as long as it lives (a large-object space, a collector that does not move): foreign code needs a root or a pin.
    Fixed,
}

impl fmt::Display for Residence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Movable => "an object that may move",
            Self::Fixed => "an object that does not move, but may die",
        })
    }
}

/// What a mutator was doing when it published a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum FrameKind {
    /// It called foreign code.
    #[default]
    ForeignCall,
    /// It stopped at a poll, or holds a pause.
    Safepoint,
    /// It is detaching, or its thread has exited with its attachment leaked: no managed frame is left. What leaked calls declared still counts.
    Leaving,
    /// A foreign thread that attached itself, or a fiber: there is no managed frame below.
    ForeignThread,
    /// It resumed a fiber.
    Resuming,
    /// It is a fiber, and suspended itself.
    Suspended,
}

impl FrameKind {
    /// The kind with this number, if there is one.
    pub(crate) fn of(number: u8) -> Option<Self> {
        [
            Self::ForeignCall,
            Self::Safepoint,
            Self::Leaving,
            Self::ForeignThread,
            Self::Resuming,
            Self::Suspended,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForeignCall => "foreign call",
            Self::Safepoint => "safepoint",
            Self::Leaving => "leaving",
            Self::ForeignThread => "foreign thread",
            Self::Resuming => "resuming a fiber",
            Self::Suspended => "suspended fiber",
        })
    }
}

/// How much of the machine a crossing records when the VM gives no anchor of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Capture {
    /// Nothing but the stack pointer: for a VM that gives every crossing an anchor of its own, which may be virtual.
    Nothing,
    /// pc, sp and fp of the frame that makes the call.
    Anchor,
    /// The same, and every callee-saved register: a conservative collector must see what a foreign callee would push on its own
    /// frame, where no scan looks. The call then goes through an assembly routine.
    Registers,
}

/// Which crossing a hook is called for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Crossing {
    /// A foreign call begins or ends.
    ForeignCall,
    /// A foreign call that was declared [blocking](crate::ForeignCall::blocking) begins or ends.
    BlockingCall,
    /// An upcall begins or ends.
    Upcall,
    /// An [`Attachment`](crate::Attachment) begins or ends. It also ends, for the hooks, where its
    /// thread is parked for ever: see [`Stragglers::Park`](crate::Stragglers::Park).
    Attachment,
}

/// What is to be done about one argument of a foreign call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ArgumentPlan {
    /// The guard's own slot: the object stays alive and may move; C reads its address through the slot.
    Root,
    /// The VM's own stack slot: as `Root`, and the slot follows the stack when it moves.
    RootInPlace,
    /// The object stays alive and does not move.
    Pin,
    /// Neither the object nor anything reachable from it moves.
    TransitivePin,
}

impl fmt::Display for ArgumentPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::RootInPlace => "root in place",
            Self::Pin => "pin",
            Self::TransitivePin => "transitive pin",
        })
    }
}

/// Why a VM refuses an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// The collector cannot pin.
    #[error("this collector cannot do a `{0}`; root the object instead and let C read it through the slot")]
    CannotPin(ArgumentPlan),
    /// The reference is not one of this world's heap.
    #[error(
        "the reference {reference:#x} is not of this world's heap; it may belong to another world, or be stale"
    )]
    NotOfThisWorld {
        /// The reference, as a word.
        reference: usize,
    },
    /// The reference names something that has no address C could use.
    #[error("the reference {reference:#x} has no address to pin; pass the value itself")]
    NotAnObject {
        /// The reference, as a word.
        reference: usize,
    },
    /// The VM lends no bytes of the object.
    #[error(
        "the VM lends no bytes of this object; implement `Vm::bytes` for it, or pin it and pass its address"
    )]
    NoBytes,
}

/// What becomes of an upcall's error: a panic, a VM exception, a refusal.
///
/// Chosen for all upcalls of a foreign call with [`ForeignCall::on_error`](crate::ForeignCall::on_error), and for one upcall function with [`Aborting`](crate::Aborting) or
/// [`FallbackOnly`](crate::FallbackOnly), which win over the call's choice. In every case C gets the upcall's fallback value (or nothing, if the process ends), and no
/// foreign frame is unwound (I7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[non_exhaustive]
pub enum ErrorPolicy {
    /// The error waits until C has returned, and goes on in the managed caller. A second one meanwhile is reported and ends.
    #[default]
    Carry,
    /// The process ends with a message: for C that cannot bear a fallback value.
    Abort,
    /// The error is reported and ends; C's fallback value is all there is to tell of it.
    Fallback,
}

/// An error of an upcall, on its way to a report or a message.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum UpcallError<'r> {
    /// A Rust panic.
    Panic {
        /// The panic's payload.
        payload: &'r (dyn Any + Send),
    },
    /// The VM's own exception, a [`Vm::Exception`].
    Exception {
        /// The exception.
        exception: ExceptionText<'r>,
    },
    /// The upcall did not begin.
    Refused(UpcallRefused),
}

impl fmt::Display for UpcallError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic { payload } => {
                f.write_str("panicked: ")?;
                write_at_most(f, format_args!("{}", crate::unwind::text(*payload)))
            }
            Self::Exception { exception } => {
                f.write_str("threw ")?;
                write_at_most(f, format_args!("{exception}"))
            }
            Self::Refused(refused) => write!(f, "was refused: {refused}"),
        }
    }
}

/// Why an upcall did not begin. C got the fallback value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpcallRefused {
    /// Too little native stack is left to run managed code.
    #[error(
        "an upcall of the foreign call at {} found {left} bytes of stack left, fewer than the {reserve} in reserve; the recursion through foreign code is too deep",
        Site(*call_site)
    )]
    StackExhausted {
        /// The bytes left.
        left: usize,
        /// The bytes that an upcall must find: see [`WorldBuilder::stack_reserve`](crate::WorldBuilder::stack_reserve).
        reserve: usize,
        /// The foreign call.
        call_site: Option<&'static Location<'static>>,
    },
    /// The foreign call was declared to [make no upcall](crate::ForeignCall::without_upcalls).
    #[error("the foreign call at {} was declared to make no upcall, and made one; take the declaration away", Site(*call_site))]
    Forbidden {
        /// The foreign call.
        call_site: Option<&'static Location<'static>>,
    },
    /// The world was shut down while the foreign call was in progress, or before the poll. No upcall was refused: this is how the call or the poll ends.
    #[error("the world was shut down, and did not wait for the foreign call or poll at {}", Site(*call_site))]
    WorldEnded {
        /// The foreign call or poll.
        call_site: Option<&'static Location<'static>>,
    },
    /// The thread holds a pause of the world.
    #[error(
        "an upcall from the foreign call at {} would wait for a pause that this thread holds itself; end the pause first",
        Site(*call_site)
    )]
    PauseHeldHere {
        /// The foreign call or pause.
        call_site: Option<&'static Location<'static>>,
    },
}

/// A call site, to print.
#[derive(Clone, Copy)]
pub(crate) struct Site(pub(crate) Option<&'static Location<'static>>);

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(site) => site.fmt(f),
            None => f.write_str("an unknown call site"),
        }
    }
}
