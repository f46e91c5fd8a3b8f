//! Stress mode: at a crossing or a poll, the thread that makes it stops the world and does the VM's own work.
//!
//! It is as if another thread had asked for a pause at that very moment, so it finds what such a pause would
//! find one day: a reference that nothing roots, an address that does not follow. In checked mode alone: other
//! builds have no trace of it.
//!
//! | point | the mutator is | where |
//! |---|---|---|
//! | a foreign call has been published, and C has not begun | foreign | `cross_out` |
//! | C has returned, and the mutator is not managed again | foreign | `cross_out` |
//! | an upcall comes in | foreign | `go_in` |
//! | a poll | at a safepoint | `Mutator::poll` |

use super::{Shared, StoppedWorld};
use crate::errno::Errno;
use crate::record::Header;
use crate::stress::{Stress, StressWork};
use crate::vm::StackScanner;
use core::panic::Location;

/// A VM's function for stress mode.
pub(crate) type Work<V> = fn(&StoppedWorld<'_, V>, StressWork);

/// A world's stress, and the VM's function for it.
pub(crate) struct Stressing<V: StackScanner> {
    pub(crate) stress: Stress,
    pub(crate) work: Option<Work<V>>,
}

impl<V: StackScanner> Shared<V> {
    /// Says whether the calling thread's mutator is stressed at this point, which is counted. Never inside the work itself, nor while the thread unwinds.
    #[cold]
    pub(crate) fn is_stressed_here(&self, header: &Header) -> bool {
        let Some(stressing) = &self.stress else { return false };
        !header.checked.is_stressed()
            && !std::thread::panicking()
            && stressing.stress.is_at(header.id.get(), header.checked.next_point())
    }

    /// Stops the world and does the work, for the calling thread, whose mutator has published a record. Does nothing if the thread holds a pause of the world.
    ///
    /// # Panics
    ///
    /// With what the VM's function panics with; the world has been resumed then.
    #[cold]
    #[inline(never)]
    pub(crate) fn do_stress(&self, header: &Header, site: &'static Location<'static>) {
        let Some(stressing) = &self.stress else { return };
        header.checked.stressed(|| {
            // It may be C's, for the caller to read.
            Errno::keep(|| {
                let Ok(stopped) = self.stop(site) else { return };
                if let Some(work) = stressing.work {
                    work(&stopped, stressing.stress.work());
                }
            });
        });
    }
}
