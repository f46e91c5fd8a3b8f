//! [`Mutator::fork`]: in the child one mutator, that of the thread that forked, and a world that works.
//!
//! The other threads do not exist in the child, whatever they were doing. What could be left half done there, a lock of this crate's above all, must not be: so the world is stopped at the
//! fork, and each lock of it held. What the other mutators had (their records, the VM's own data of each) is leaked in the child: it can be torn. Their roots
//! are gone, as they are not attached. `atfork.rs` says at which moment, and who notices other forks.

use crate::atfork::{Prepared, fork};
use crate::home::homes_held;
use crate::mutator::Mutator;
use crate::pause::{Shared, StoppedWorld};
use crate::record::Header;
use crate::state::Event;
use crate::sync::FenceStrategy;
use crate::thread::is_mine;
use crate::transition::{at_safepoint, refuse_wait_in_own_pause};
use crate::vm::StackScanner;
use core::panic::Location;
use std::io;

/// Which process [`Mutator::fork`] has returned in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forked {
    /// The parent; with the child's process number.
    Parent(i32),
    /// The child.
    Child,
}

impl<V: StackScanner> Mutator<V> {
    /// Forks the process. In the child the world works: it allocates, collects, attaches new threads. Its mutators are this one, that of the thread if this is a fiber's, and those of fibers
    /// that are suspended; a fiber that another thread was running is lost, and can only be dropped.
    ///
    /// Other worlds of the process are not prepared: in the child they cannot be used, and say so, unless the process had one thread only. Foreign threads attach to the child's world on their
    /// first upcall, as in any. This activation counts as stopped while the fork lasts.
    ///
    /// Handlers of `pthread_atfork` may call in and make closures, in the parent and in the child: the world is stopped, and this crate's locks are held, between the last handler that prepares and
    /// the first after the fork. (Linux. Elsewhere that is so for handlers registered after the first fork; and everywhere not for those that a shared library registers in its own
    /// initialiser before `main`: what they call is refused, as in a pause of this thread.)
    ///
    /// # Safety
    ///
    /// What POSIX asks of a child of a process with several threads holds for everything but this crate: a lock that another thread held is held for ever. The C library's allocator is safe
    /// after a fork on Linux and macOS; for the VM's own locks see to it that no mutator holds one when it is stopped or foreign.
    ///
    /// # Errors
    ///
    /// The system's. Then there is no child.
    ///
    /// # Panics
    ///
    /// If this thread holds a pause of this world.
    #[track_caller]
    pub unsafe fn fork(&mut self) -> io::Result<Forked> {
        let site = Location::caller();
        at_safepoint::<V, _>(self.header(), self.frame(), Event::Pause, None, site, || {
            let shared = self.shared();
            if shared.coordinator.is_held_here() {
                refuse_wait_in_own_pause("a fork", site);
            }
            let mut stop = StopForFork { shared, header: self.header(), site, held: None };
            // SAFETY: the caller answers for everything but this crate, which the handlers take care of.
            match unsafe { fork(&mut stop) } {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(Forked::Child),
                child => Ok(Forked::Parent(child)),
            }
        })
    }
}

/// A world that is stopped, with its locks held, for the moment of a fork.
struct StopForFork<'f, V: StackScanner> {
    shared: &'f Shared<V>,
    header: &'f Header,
    site: &'static Location<'static>,
    /// The locks, to be given back in reverse order, and then the world.
    held: Option<(Locks<'f>, StoppedWorld<'f, V>)>,
}

type Locks<'f> = Vec<Box<dyn Lock + 'f>>;

/// What is given back when it is dropped.
trait Lock {}

impl<T> Lock for T {}

impl<V: StackScanner> Prepared for StopForFork<'_, V> {
    fn prepare(&mut self) {
        let shared = self.shared;
        // Seen just now: this thread holds no pause. A handler of a library cannot have begun one and kept it.
        let Ok(stopped) = shared.stop(self.site) else { return };
        // Another thread may be interrupting a call that this activation is an upcall of.
        let interrupts = Box::new(self.header.interrupts.stand_still());
        let mut locks: Locks<'_> = vec![interrupts, Box::new(homes_held()), Box::new(shared.pins.held())];
        #[cfg(feature = "audit")]
        if let Some(audit) = &shared.coordinator.audit {
            locks.push(Box::new(audit.held()));
        }
        #[cfg(feature = "libffi")]
        locks.push(Box::new(crate::dynamic::shared_held()));
        locks.push(Box::new(shared.in_foreign.held()));
        locks.push(Box::new(shared.to_stop.held()));
        locks.push(Box::new(shared.coordinator.lock()));
        self.held = Some((locks, stopped));
    }

    fn after(&mut self, in_child: bool) {
        let Some((mut locks, mut stopped)) = self.held.take() else { return };
        while let Some(lock) = locks.pop() {
            drop(lock);
        }
        if in_child {
            FenceStrategy::after_fork();
            stopped.forget_others(is_mine);
            self.header.interrupts.forget_other_threads();
        }
    }

    fn keep_world(&self) {
        self.shared.coordinator.is_of_this_process_now();
    }
}
