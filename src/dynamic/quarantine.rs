//! Where the code of dropped closures stays for a while: a late call finds a report there, and not somebody else's code.

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// What becomes of a [`Closure`](super::Closure)'s code when the closure is dropped. One choice for the process: C may call when the world is gone.
///
/// A call of code in quarantine gets the closure's fallback value, and is reported with its name and the place where it was made ([`Report::ClosureCalledLate`](crate::Report::ClosureCalledLate)). When the
/// code has left quarantine its memory is used for other closures, and a late call is undefined behaviour.
///
/// # Examples
///
/// ```
/// use reentry::dynamic::{LateCall, Quarantine};
///
/// // A development build: nothing leaves, and a late call ends the process.
/// Quarantine::forever().on_late_call(LateCall::Abort).install();
/// // The default.
/// Quarantine::of(1024).install();
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a quarantine is in force when it is installed"]
pub struct Quarantine {
    size: usize,
    late_call: LateCall,
}

/// What a call of dropped closure's code does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum LateCall {
    /// It is reported, and C gets the fallback value.
    #[default]
    Report,
    /// It ends the process with the message of the report.
    Abort,
}

impl Quarantine {
    /// Keeps the code of the `closures` dropped last: 100 to 200 bytes each.
    pub const fn of(closures: usize) -> Self {
        Self { size: closures, late_call: LateCall::Report }
    }

    /// Keeps the code of every closure that was ever dropped.
    pub const fn forever() -> Self {
        Self::of(usize::MAX)
    }

    /// Chooses what a late call does.
    pub const fn on_late_call(mut self, late_call: LateCall) -> Self {
        self.late_call = late_call;
        self
    }

    /// Puts it in force. What is in quarantine and finds no room any more leaves it.
    pub fn install(self) {
        let left = with(|ward| {
            ward.size = self.size;
            LATE_CALL_ABORTS.store(self.late_call == LateCall::Abort, Ordering::Relaxed);
            ward.leave()
        });
        drop(left);
    }

    /// How many closures are in quarantine now.
    #[must_use]
    pub fn len() -> usize {
        with(|ward| ward.inmates.len())
    }

    pub(super) fn late_call() -> LateCall {
        if LATE_CALL_ABORTS.load(Ordering::Relaxed) { LateCall::Abort } else { LateCall::Report }
    }
}

/// The code of a dropped closure.
pub(super) trait Dropped: Send {
    /// Whether no thread is in it at this moment.
    fn is_deserted(&self) -> bool;
}

pub(super) type Inmate = Box<dyn Dropped>;

struct Ward {
    size: usize,
    inmates: VecDeque<Inmate>,
}

static WARD: Mutex<Ward> = Mutex::new(Ward { size: 1024, inmates: VecDeque::new() });

/// Beside the lock, which a late call does not take: it may come in the handler of a signal, on a thread that holds it. Orders nothing.
static LATE_CALL_ABORTS: AtomicBool = AtomicBool::new(false);

fn with<R>(f: impl FnOnce(&mut Ward) -> R) -> R {
    // Each critical section leaves the queue whole wherever it can unwind.
    f(&mut WARD.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Ward {
    /// Takes out what there is no room for, the oldest first. What a thread is in at this moment stays.
    fn leave(&mut self) -> Vec<Inmate> {
        let mut left = Vec::new();
        let mut looked_at = 0;
        while self.inmates.len() > self.size && looked_at < self.inmates.len() {
            if self.inmates[looked_at].is_deserted() {
                left.extend(self.inmates.remove(looked_at));
            } else {
                looked_at += 1;
            }
        }
        left
    }
}

/// Takes in the code of a closure that was dropped.
pub(super) fn admit(inmate: Inmate) {
    let left = with(|ward| {
        ward.inmates.push_back(inmate);
        ward.leave()
    });
    drop(left);
}

/// No other thread holds the lock until the result is dropped.
#[cfg(all(unix, not(loom), not(miri)))]
pub(super) fn quarantine_held() -> impl Sized {
    WARD.lock().unwrap_or_else(PoisonError::into_inner)
}
