//! How a mutator waits: the slow path behind every poll word that is not clear.
//!
//! A thread that has become managed and finds its poll word set has touched nothing managed yet. It publishes the record it came with, waits until the pause is over, becomes
//! managed again and looks again (I4). The stopper may observe it managed in between; it does not matter which of the two the stopper sees first, since
//! the record is the same one.

use crate::activation::ForeignFrame;
use crate::errno::Errno;
use crate::faults::Faults;
use crate::record::Header;
use crate::registry::{Coordinator, Unreleased, Waiter};
use crate::steps::{Step, reached};

impl Coordinator {
    /// Publishes `frame`, waits for the pause in force to end, and returns managed in the activation whose record is `running`.
    ///
    /// # Errors
    ///
    /// The calling thread holds the pause itself, or the world has ended; then it is published still.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait_published(
        &self,
        header: &Header,
        frame: *const ForeignFrame,
        running: *const ForeignFrame,
        waiter: Waiter,
        faults: Faults,
    ) -> Result<(), Unreleased> {
        Errno::keep(|| {
            loop {
                header.word.publish(frame, faults);
                self.wait_until_released(header, waiter)?;
                reached(header.world, Step::WaitOver);
                if header.word.retract(running, faults, || reached(header.world, Step::WaitRetracted)) {
                    return Ok(());
                }
            }
        })
    }

    /// Makes managed, for good, a mutator that is being told that the world has ended.
    ///
    /// # Errors
    ///
    /// As [`wait_published`](Self::wait_published).
    pub(crate) fn release_ended(
        &self,
        header: &Header,
        frame: *const ForeignFrame,
        running: *const ForeignFrame,
        faults: Faults,
    ) -> Result<(), Unreleased> {
        header.word.clear(crate::state::ENDED, faults);
        self.wait_published(header, frame, running, Waiter::Return, faults)
    }
}
