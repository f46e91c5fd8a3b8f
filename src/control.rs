//! Machine state that foreign code may change and not put back: the control of floating-point arithmetic, the signal mask.
//!
//! A C library that sets "flush denormals to zero", or traps a floating-point exception, or blocks a signal, changes what managed code computes or receives
//! after it. Saving and restoring costs more than a whole crossing (a few nanoseconds for the control registers, two system calls for the mask), so a call asks for it:
//! [`ForeignCall::preserving`](crate::ForeignCall::preserving). HotSpot has the same choice for a whole process, `-XX:+RestoreMXCSROnJNICalls`.

use crate::arch::FloatControl;
use core::fmt;

/// Which machine state a foreign call puts back. See [`ForeignCall::preserving`](crate::ForeignCall::preserving).
///
/// `errno` is not among it: C's result in `errno` survives the way back always, and is captured by
/// [`ForeignCall::run_with_errno`](crate::ForeignCall::run_with_errno).
///
/// # Examples
///
/// ```
/// use reentry::MachineState;
///
/// let both = MachineState::FLOATING_POINT.and(MachineState::SIGNAL_MASK);
/// assert_eq!(both, MachineState::ALL);
/// assert!(both.has(MachineState::SIGNAL_MASK) && !MachineState::NOTHING.has(both));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MachineState(u8);

impl MachineState {
    /// Nothing: the default.
    pub const NOTHING: Self = Self(0);
    /// The control of floating-point arithmetic: MXCSR and the x87 control word on x86_64, FPCR on aarch64. Other machines: nothing.
    pub const FLOATING_POINT: Self = Self(1);
    /// The thread's signal mask (Unix; elsewhere nothing): two system calls for each crossing.
    pub const SIGNAL_MASK: Self = Self(2);
    /// Both.
    pub const ALL: Self = Self(3);

    /// What either has.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Says whether `self` has all of `other`.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NOTHING => "NOTHING",
            Self::FLOATING_POINT => "FLOATING_POINT",
            Self::SIGNAL_MASK => "SIGNAL_MASK",
            _ => "ALL",
        })
    }
}

/// Machine state as it was.
#[derive(Clone, Copy)]
pub(crate) struct Saved {
    float: Option<FloatControl>,
    #[cfg(all(unix, not(miri)))]
    mask: Option<libc::sigset_t>,
}

impl Saved {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self {
        float: None,
        #[cfg(all(unix, not(miri)))]
        mask: None,
    };

    /// Reads what `state` names.
    pub(crate) fn read(state: MachineState) -> Self {
        Self {
            float: state.has(MachineState::FLOATING_POINT).then(FloatControl::read),
            #[cfg(all(unix, not(miri)))]
            mask: state.has(MachineState::SIGNAL_MASK).then(signal_mask),
        }
    }

    /// Puts it back.
    pub(crate) fn restore(&self) {
        if let Some(float) = self.float {
            float.restore();
        }
        #[cfg(all(unix, not(miri)))]
        if let Some(mask) = &self.mask {
            // SAFETY: a mask that was read from this thread. It cannot fail with a valid `how`.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, core::ptr::null_mut()) };
        }
    }
}

#[cfg(all(unix, not(miri)))]
fn signal_mask() -> libc::sigset_t {
    let mut mask = core::mem::MaybeUninit::uninit();
    // SAFETY: `mask` is valid for writes; a null set changes nothing, and the call then fails for no reason.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, core::ptr::null(), mask.as_mut_ptr());
        mask.assume_init()
    }
}

/// No signal is delivered to this thread while it lives, but those that the thread's own
/// instructions cause.
///
/// For sections that a handler must not find half done, since it may make an upcall. Go's runtime
/// does so round the attaching of a foreign thread (`needm`). A signal that an instruction causes
/// cannot wait: while it is blocked the kernel ends the process, with no handler's word. So a VM's
/// own code that runs in such a section, `Vm::attach`, overflows its stack with the usual message.
pub(crate) struct SignalsBlocked {
    #[cfg(all(unix, not(loom), not(miri)))]
    before: libc::sigset_t,
}

/// What an instruction of the thread itself causes: never blocked.
#[cfg(all(unix, not(loom), not(miri)))]
const SYNCHRONOUS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(all(unix, not(loom), not(miri)))]
            before: {
                let mut all = core::mem::MaybeUninit::uninit();
                let mut before = core::mem::MaybeUninit::uninit();
                // SAFETY: both sets are valid for writes, and filled by these calls, which cannot fail with such arguments.
                unsafe {
                    libc::sigfillset(all.as_mut_ptr());
                    for synchronous in SYNCHRONOUS {
                        libc::sigdelset(all.as_mut_ptr(), synchronous);
                    }
                    libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
                    before.assume_init()
                }
            },
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        #[cfg(all(unix, not(loom), not(miri)))]
        // SAFETY: the mask that was in force.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, core::ptr::null_mut());
        }
    }
}
