//! `fork` in a process with several threads: the child has the thread that forked, one mutator of it, and a world that works.
//!
//! The other threads do not exist in the child, whatever they were doing. What could be left half done there, a lock of this crate's above all, must not be: so the world is stopped round
//! the fork, and each lock of it held. What the other mutators had (their records, the VM's own data of each) is leaked in the child: it can be torn. Their roots
//! are gone, as they are not attached.

use crate::home::with_homes_held;
use crate::mutator::Mutator;
use crate::os_thread::ThreadTag;
use crate::state::Event;
use crate::sync::FenceStrategy;
use crate::thread::{each_on_thread, is_mine};
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
    /// Other worlds of the process are not prepared: in the child they must not be used. Foreign threads attach to the child's world on their first upcall, as in any. This activation
    /// counts as stopped for the moment of the fork.
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
            let Ok(mut stopped) = shared.stop(site) else { refuse_wait_in_own_pause("a fork", site) };
            let fork = || {
                let _registry = shared.coordinator.lock();
                // SAFETY: the caller answers for everything but this crate, whose locks this thread holds.
                match unsafe { libc::fork() } {
                    -1 => Err(io::Error::last_os_error()),
                    0 => Ok(Forked::Child),
                    child => Ok(Forked::Parent(child)),
                }
            };
            // Another thread may be interrupting a call that this activation is an upcall of.
            let _interrupts = self.header().interrupts();
            let fork = || shared.in_foreign.held(|| shared.to_stop.held(fork));
            #[cfg(feature = "libffi")]
            let fork = || crate::dynamic::with_shared_held(fork);
            #[cfg(feature = "audit")]
            let fork = || match &shared.coordinator.audit {
                Some(audit) => audit.held(fork),
                None => fork(),
            };
            let forked = with_homes_held(|| shared.pins.held(fork))?;
            if forked == Forked::Child {
                FenceStrategy::after_fork();
                rename_thread();
                stopped.forget_others(is_mine);
            }
            Ok(forked)
        })
    }
}

/// Has this thread's mutators name the thread by the number it has in this process, a forked one.
fn rename_thread() {
    ThreadTag::forget_here();
    let renamed = each_on_thread(|header| {
        if header.fiber().is_none() {
            header.thread.set(ThreadTag::here());
        }
        Ok::<(), core::convert::Infallible>(())
    });
    let Ok(()) = renamed;
}
