//! Who is late: reports of mutators that do not stop, and of threads that wait long for a pause to end.
//!
//! Off unless [`WorldBuilder::report_after`](crate::WorldBuilder::report_after) is asked for; only a wait that has become long does anything for it.

use crate::activation::ForeignFrame;
use crate::record::Header;
use crate::registry::{Coordinator, Watch};
use crate::root_stack::EntryKind;
use crate::vm::{PauseWait, Report, Straggler};
use core::panic::Location;
use core::time::Duration;

impl Coordinator {
    fn tell(&self, watch: Watch, report: &Report<'_>) {
        // SAFETY: the watch is this coordinator's.
        unsafe { (watch.report)(self, report) }
    }

    /// A stopper has waited `waited` for `late`: reports it, with those of `mutators` that have stopped and hold something.
    #[cold]
    pub(crate) fn report_straggler<'h>(
        &self,
        watch: Watch,
        late: &Header,
        waited: Duration,
        mutators: impl Iterator<Item = &'h Header>,
    ) {
        let stopped = mutators.filter_map(|header| {
            // SAFETY: null, or a published record: live, complete (I1), and not changed while its mutator must stop.
            let frame = unsafe { header.word.observe().as_ref() }?;
            Some(what_it_holds(header, frame, None)).filter(|held| held.pins > 0 || !held.locks.is_empty())
        });
        let straggler = Straggler {
            mutator: late.id.get(),
            waited,
            call_sites: call_sites(late),
            locks: late.noted_locks(),
            stopped: stopped.collect(),
        };
        self.tell(watch, &Report::Straggler(&straggler));
    }

    /// A mutator that a shutdown did not wait for.
    #[cfg(not(loom))]
    pub(crate) fn straggler(&self, late: &Header, waited: Duration) -> Straggler {
        // Its records are not freed while it is attached, nor while the lock is held.
        let registry = self.lock();
        let attached = registry.attached.iter().any(|&header| core::ptr::eq(header, late));
        Straggler {
            mutator: late.id.get(),
            waited,
            call_sites: if attached { call_sites(late) } else { Vec::new() },
            locks: late.noted_locks(),
            stopped: Vec::new(),
        }
    }

    /// The thread of `header`'s mutator has waited `waited` for a pause to end.
    #[cold]
    pub(crate) fn report_wait(
        &self,
        watch: Watch,
        header: &Header,
        waited: Duration,
        holder: Option<&'static Location<'static>>,
    ) {
        // SAFETY: the word of an attached mutator holds a live record.
        let frame = unsafe { &*header.word.record() };
        let mut wait = what_it_holds(header, frame, Some(waited));
        wait.pause_site = holder;
        self.tell(watch, &Report::PauseWait(&wait));
    }
}

/// What a stopped mutator would be waited for, if others wait for it.
fn what_it_holds(header: &Header, frame: &ForeignFrame, waited: Option<Duration>) -> PauseWait {
    let mut pins = 0;
    header.roots.all(|entry| {
        pins += usize::from(matches!(entry.kind, EntryKind::Pin | EntryKind::TransitivePin));
    });
    PauseWait {
        mutator: header.id.get(),
        waited: waited.unwrap_or_default(),
        call_site: frame.site.get(),
        kind: frame.kind.get(),
        pins,
        locks: header.noted_locks(),
        pause_site: None,
    }
}

/// The last known call sites of a mutator that may be running, newest first.
pub(crate) fn call_sites(header: &Header) -> Vec<&'static Location<'static>> {
    let mut sites = Vec::new();
    let mut frame = header.word.latest();
    // SAFETY: null, or a record of this mutator: attached, so it is not freed while the gate is shut; whole, as `latest` says, however new; site and link may be read by any thread.
    while let Some(record) = unsafe { frame.as_ref() } {
        sites.extend(record.site.get());
        frame = record.older;
    }
    sites
}
