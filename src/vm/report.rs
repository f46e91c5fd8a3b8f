//! What happened that no caller can be told of.

use super::{PauseWait, Residence, Site, StopWait, UpcallError, Waiting};
use crate::leaks::Leaks;
use crate::os_thread::ThreadLabel;
use core::fmt;
use core::panic::Location;
use core::time::Duration;

/// The upcall that a report is about, and the thread it came in on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpcallOrigin<'r> {
    /// The name of its function, or of its closure; `None` where [`Mutator::throw`](crate::Mutator::throw) was called, which does not know.
    pub function: Option<&'r str>,
    /// Where its closure was made.
    pub made_at: Option<&'static Location<'static>>,
    /// The thread.
    pub thread: ThreadLabel,
    /// The number of the thread's mutator, if it is attached.
    pub mutator: Option<u64>,
    /// The foreign call that called back; `None` on a thread that foreign code made.
    pub call_site: Option<&'static Location<'static>>,
}

impl fmt::Display for UpcallOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.function {
            Some(function) => write!(f, "`{function}`")?,
            None => f.write_str("an upcall that called `Mutator::throw`")?,
        }
        if let Some(made_at) = self.made_at {
            write!(f, ", made at {made_at},")?;
        }
        f.write_str(" on ")?;
        if let Some(mutator) = self.mutator {
            write!(f, "mutator {mutator}, ")?;
        }
        write!(f, "{}", self.thread)?;
        if let Some(site) = self.call_site {
            write!(f, ", in the foreign call at {site}")?;
        }
        Ok(())
    }
}

/// Something that happened where no caller can be told of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Report<'r> {
    /// An upcall failed on a foreign thread that has no managed caller. C got the fallback value; the error ends here.
    UpcallErrorUnclaimed {
        /// What happened.
        error: UpcallError<'r>,
        /// Which upcall it was.
        upcall: &'r UpcallOrigin<'r>,
    },
    /// An upcall's error was overtaken: a second upcall of one foreign call failed, or the foreign call was unwound by a panic of its own, or the thread was unwinding
    /// already, or foreign code skipped the call that carried it. This one ends here.
    UpcallErrorSuperseded {
        /// What happened.
        error: UpcallError<'r>,
    },
    /// An upcall failed, and the [policy](crate::ErrorPolicy::Fallback) says that C's fallback value is all there is.
    UpcallErrorIgnored {
        /// What happened.
        error: UpcallError<'r>,
        /// The foreign call.
        call_site: Option<&'static Location<'static>>,
        /// Which upcall it was.
        upcall: &'r UpcallOrigin<'r>,
    },
    /// A thread called in after the world was shut down: a foreign one, or one of the VM's that the shutdown did not wait for. C got the fallback value.
    UpcallAfterShutdown {
        /// Which upcall it was.
        upcall: &'r UpcallOrigin<'r>,
    },
    /// A foreign call went on to call back when an upcall of it had failed: C got the fallback values at once,
    /// and the upcall functions were not run. Reported when the call has returned, once. See
    /// [`ForeignCall::upcalls_after_error`](crate::ForeignCall::upcalls_after_error).
    UpcallsAfterError {
        /// How many upcalls there were.
        count: u32,
        /// The foreign call.
        call_site: Option<&'static Location<'static>>,
    },
    /// A foreign thread called in before the world was opened. C got the fallback value.
    UpcallBeforeOpen {
        /// Which upcall it was.
        upcall: &'r UpcallOrigin<'r>,
    },
    /// A foreign thread called in when its exit had detached it. C got the fallback value.
    UpcallAtThreadExit {
        /// Which upcall it was.
        upcall: &'r UpcallOrigin<'r>,
    },
    /// A handler or destructor of foreign code called in at the exit of the process, on a thread
    /// where the call that `exit` was made in is in progress still: managed code, or a pause. C got
    /// the fallback value.
    UpcallAtProcessExit,
    /// An upcall function was called on a thread that no world knows, and no world has ever adopted
    /// foreign threads for its type of VM. C got the fallback value: the function is
    /// [`FallbackOnly`](crate::FallbackOnly), or the process is exiting. There is no VM to tell, so
    /// this is written to standard error.
    UpcallWithoutWorld {
        /// The type of the VM.
        vm: &'static str,
    },
    /// Foreign code called a closure that had been dropped. It got the fallback value.
    #[cfg(feature = "libffi")]
    ClosureCalledLate {
        /// The closure's name.
        name: &'r str,
        /// Where it was made.
        made_at: &'static Location<'static>,
    },
    /// Foreign code skipped the frames of `skipped` upcalls (`longjmp`, a foreign exception). What they held has been released.
    ActivationsSkipped {
        /// How many activations were skipped.
        skipped: usize,
        /// The foreign call whose foreign code skipped them.
        call_site: Option<&'static Location<'static>>,
    },
    /// The world ends, or was shut down with nobody attached, and handles or pins that outlive calls have not been given back.
    Leaked {
        /// What is left, by the place it was made at.
        leaks: &'r Leaks,
    },
    /// A mutator detached while foreign calls that were leaked still held arguments. They have been released.
    ArgumentsLeaked {
        /// The mutator's number.
        mutator: u64,
        /// How many roots, pins and kept values there were.
        count: usize,
    },
    /// A leaf call has kept a pause waiting for longer than its site allows: see [`LeafSite`](crate::LeafSite).
    LeafOverBudget {
        /// The leaf call.
        call_site: &'static Location<'static>,
        /// How long the pause has waited for it so far: the leaf has run for that long at least.
        delay: Duration,
        /// What its site allows.
        budget: Duration,
        /// Whether calls with this site are full foreign calls from now on.
        promoted: bool,
    },
    /// Checked mode: foreign code is about to be given an address in the heap that nothing protects. See [`ForeignCall::check`](crate::ForeignCall::check).
    UnprotectedPointer {
        /// The address.
        address: usize,
        /// The foreign call.
        call_site: &'static Location<'static>,
        /// Which argument of [`ForeignCall::invoke`](crate::ForeignCall::invoke) it is, or is in; `None` for call memory and for what
        /// [`ForeignCall::check`](crate::ForeignCall::check) was given.
        argument: Option<usize>,
        /// What the VM says of the object.
        residence: Residence,
    },
    /// A thread has waited long for a mutator to stop. See [`WorldBuilder::report_after`](crate::WorldBuilder::report_after).
    StopWait(&'r StopWait),
    /// A thread has waited long for a pause or a handshake to end. See [`WorldBuilder::report_after`](crate::WorldBuilder::report_after).
    PauseWait(&'r PauseWait),
    /// A thread has waited long for something that is no pause: for [`World::open`](crate::World::open). See [`WorldBuilder::report_after`](crate::WorldBuilder::report_after).
    OtherWait(&'r Waiting),
    /// The [audit](crate::guide::audit) has found a slot that comes and goes, or is stale.
    #[cfg(feature = "audit")]
    Audit(&'r super::Finding),
    /// A [`Fiber`](crate::Fiber) was dropped while activations of it were suspended. What they held has been released; their frames must not run again.
    FiberDropped {
        /// The number of its mutator.
        fiber: u64,
        /// How many activations were suspended.
        activations: usize,
        /// Where it had suspended itself.
        suspended_at: Option<&'static Location<'static>>,
    },
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpcallErrorUnclaimed { error, upcall } => write!(
                f,
                "an upcall on a foreign thread {error}; no managed caller is there to take it; C got the fallback value\n  which: {upcall}"
            ),
            Self::UpcallErrorSuperseded { error } => {
                write!(f, "an upcall {error}; another error of the same thread is the one that goes on")
            }
            Self::UpcallErrorIgnored { error, call_site, upcall } => write!(
                f,
                "an upcall of the foreign call at {} {error}; C got the fallback value, as its error policy says\n  which: {upcall}",
                Site(*call_site)
            ),
            Self::UpcallAfterShutdown { upcall: upcall @ UpcallOrigin { mutator: Some(mutator), .. } } => write!(
                f,
                "mutator {mutator}, which the shutdown did not wait for, called in after shutdown; C got the fallback value\n  which: {upcall}"
            ),
            Self::UpcallAfterShutdown { upcall } => write!(
                f,
                "a foreign thread called in after shutdown; C got the fallback value\n  which: {upcall}"
            ),
            Self::UpcallBeforeOpen { upcall } => write!(
                f,
                "a foreign thread called in before `World::open`; C got the fallback value\n  which: {upcall}"
            ),
            Self::UpcallAtThreadExit { upcall } => write!(
                f,
                "a foreign thread called in while it was exiting; C got the fallback value\n  which: {upcall}"
            ),
            Self::UpcallsAfterError { count, call_site } => write!(
                f,
                "{count} upcall(s) of the foreign call at {} were not run, since one before had failed; C got the fallback values; \
                 a function that must run all the same is declared with `Always`, a call with `upcalls_after_error`",
                Site(*call_site)
            ),
            Self::UpcallAtProcessExit => f.write_str(
                "foreign code called in at the exit of the process, where managed code or a pause of the same thread had called `exit`; C got the fallback value. Leave managed code before the process exits",
            ),
            Self::UpcallWithoutWorld { vm } => write!(
                f,
                "a thread that no world knows called an upcall function of `{vm}`; C got the fallback value. Call `World::adopt_foreign_threads` first, or use an `UpcallClosure`, which knows its world"
            ),
            #[cfg(feature = "libffi")]
            Self::ClosureCalledLate { name, made_at } => write!(
                f,
                "foreign code called the closure `{name}`, made at {made_at}, after it had been dropped; C got the fallback value. Keep the closure until C has forgotten it"
            ),
            Self::ActivationsSkipped { skipped, call_site } => write!(
                f,
                "foreign code skipped the frames of {skipped} upcall(s) of the foreign call at {}; what they held has been released",
                Site(*call_site)
            ),
            Self::Leaked { leaks } => write!(f, "references of this world were not given back: {leaks}"),
            Self::ArgumentsLeaked { mutator, count } => write!(
                f,
                "mutator {mutator} detached with {count} declared argument(s) of foreign calls that were leaked; they have been released"
            ),
            Self::LeafOverBudget { call_site, delay, budget, promoted } => {
                write!(
                    f,
                    "a pause has waited {delay:?} for the leaf call at {call_site}, which may take {budget:?}; "
                )?;
                f.write_str(if *promoted {
                    "it is a full foreign call from now on"
                } else {
                    "make it a full foreign call, or let its site promote it"
                })
            }
            Self::UnprotectedPointer { address, call_site, argument, residence } => {
                write!(f, "the foreign call at {call_site} gives C the address {address:#x}")?;
                match argument {
                    Some(argument) => write!(f, " in argument {argument}")?,
                    None => f.write_str(" in memory it passes")?,
                }
                write!(f, ", which lies in {residence}, and nothing protects it; ")?;
                f.write_str(match residence {
                    Residence::Movable => "pin the object",
                    Residence::Fixed => "root the object",
                })
            }
            Self::StopWait(wait) => wait.fmt(f),
            Self::PauseWait(wait) => wait.fmt(f),
            Self::OtherWait(wait) => wait.fmt(f),
            #[cfg(feature = "audit")]
            Self::Audit(finding) => finding.fmt(f),
            Self::FiberDropped { fiber, activations, suspended_at } => write!(
                f,
                "fiber {fiber} was dropped with {activations} activation(s) suspended at {}; what they held has been released. Drop its stack first, inside `Mutator::resume`",
                Site(*suspended_at)
            ),
        }
    }
}
