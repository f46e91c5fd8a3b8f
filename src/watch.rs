//! Who waits, and for whom: what is taken down of a wait that lasts long, and how it is reported.
//!
//! Each place where a thread can wait for another has a [`Patience`](crate::patience::Patience). When that runs
//! out, the thread that waits takes down what it sees, as plain data and while what it looks at stands still;
//! then it lets every lock of the crate go; then it reports.

use crate::os_thread::{ThreadLabel, ThreadTag, activity_of};
use crate::record::Header;
use crate::registry::{Ask, Coordinator, Registry, Watch};
use crate::root_stack::EntryKind;
use crate::vm::{FrameKind, Group, Holder, PauseInForce, PauseWait, Report, StopWait, Straggler, Waiting};
use core::panic::Location;
use core::time::Duration;

impl Ask<'_> {
    /// The thread that calls this, as one that has waited for `waited`. `own` is its mutator, if it has one that has published a record.
    fn waiting(&self, own: Option<&Header>, waited: Duration) -> Waiting {
        Waiting {
            thread: ThreadLabel::here(),
            mutator: self.mutator,
            wants: self.wants,
            site: self.site,
            upcall: self.upcall.map(str::to_owned),
            within: own.map(calls_below).unwrap_or_default(),
            waited,
        }
    }
}

/// The foreign calls that the calling thread's activations were called from, newest first.
fn calls_below(own: &Header) -> Vec<Option<&'static Location<'static>>> {
    let mut calls = Vec::new();
    // SAFETY: the word of an attached mutator holds a live record of it, and `older` is null or names one.
    let mut frame = unsafe { (*own.word.record()).older.as_ref() };
    while let Some(record) = frame {
        calls.push(if record.kind.get() == FrameKind::ForeignThread { None } else { record.site.get() });
        // SAFETY: as above.
        frame = unsafe { record.older.as_ref() };
    }
    calls
}

impl Coordinator {
    /// Gives a report to the VM. No lock of the crate is held.
    fn tell(&self, watch: Watch, report: &Report<'_>) {
        // SAFETY: the watch is this coordinator's. (A report that panics ends the process: see `vm::tell`.)
        unsafe { (watch.report)(self, report) }
    }

    /// A stopper has waited `waited` for `late`: reports it, with what `mutators` do, those it has asked to stop.
    ///
    /// For the stopper: the gate is shut, so the records that it looks at stay attached.
    #[cold]
    pub(crate) fn report_stop_wait<'h>(
        &self,
        watch: Watch,
        ask: Ask<'_>,
        late: &Header,
        waited: Duration,
        mutators: impl Iterator<Item = &'h Header>,
        unasked: usize,
    ) {
        let (mut holders, mut others) = (Vec::new(), Vec::<Group>::new());
        let (mut tags, mut own) = (Vec::new(), None);
        for header in mutators {
            tags.push((header.thread.get(), header));
            if core::ptr::eq(header, late) {
                continue;
            }
            // SAFETY: null, or a published record: live, complete (I1), and not changed while its mutator must stop.
            let frame = unsafe { header.word.observe().as_ref() };
            let (kind, call_site) =
                frame.map_or((None, None), |frame| (Some(frame.kind.get()), frame.site.get()));
            if ask.mutator == Some(header.id.get()) {
                own = Some(header);
            } else {
                match others.iter_mut().find(|group| group.kind == kind && group.call_site == call_site) {
                    Some(group) => group.count += 1,
                    None => others.push(Group { kind, call_site, count: 1 }),
                }
            }
            let Some(kind) = kind else { continue };
            let (pins, locks) = (pins(header), header.noted_locks());
            if pins > 0 || !locks.is_empty() {
                holders.push(Holder { mutator: header.id.get(), thread: None, kind, call_site, pins, locks });
            }
        }
        for holder in &mut holders {
            let header = tags.iter().find(|(_, header)| header.id.get() == holder.mutator);
            holder.thread =
                header.and_then(|(_, header)| thread_of(header, tags.iter().map(|(tag, _)| *tag)));
        }
        others.sort_by_key(|group| core::cmp::Reverse(group.count));
        let late = straggler(late, waited, thread_of(late, tags.iter().map(|(tag, _)| *tag)));
        let wait = StopWait { waiter: ask.waiting(own, waited), late, holders, others, unasked };
        self.tell(watch, &Report::StopWait(&wait));
    }

    /// A mutator that a shutdown did not wait for.
    #[cfg(not(loom))]
    pub(crate) fn straggler(&self, late: &Header, waited: Duration) -> Straggler {
        // Its records are not freed while it is attached, nor while the lock is held.
        let registry = self.lock();
        let attached = || {
            // SAFETY: attached records are live, and the lock is held.
            registry.attached.iter().map(|&header| unsafe { &*header })
        };
        let thread = thread_of(late, attached().map(|header| header.thread.get()));
        if attached().any(|header| core::ptr::eq(header, late)) {
            return straggler(late, waited, thread);
        }
        Straggler {
            mutator: late.id.get(),
            thread,
            waited,
            region: None,
            last_leaf: None,
            call_sites: Vec::new(),
            locks: late.noted_locks(),
            activity: None,
        }
    }

    /// Takes down that the calling thread has waited `waited` for a pause to end.
    ///
    /// `own` is its mutator, if it has one that has published a record.
    #[cold]
    pub(crate) fn take_down_pause_wait(
        registry: &Registry,
        ask: Ask<'_>,
        own: Option<&Header>,
        waited: Duration,
    ) -> PauseWait {
        let pause = registry.asker.map(|asker| {
            // SAFETY: null, or a mutator that was attached when the pause in force began, and is until it ends, for which the lock is needed.
            let late = unsafe { registry.awaited.as_ref() };
            let late = late.filter(|late| late.word.observe().is_null());
            PauseInForce {
                wants: asker.wants,
                site: asker.site,
                thread: ThreadLabel::of(asker.thread),
                since: registry.pause_lasts(),
                late: late.map(|late| {
                    let thread = label_of(late.thread.get());
                    straggler(late, registry.pause_lasts(), thread)
                }),
            }
        });
        PauseWait {
            waiter: ask.waiting(own, waited),
            pins: own.map_or(0, pins),
            locks: own.map(Header::noted_locks).unwrap_or_default(),
            pause,
        }
    }

    /// Reports what was taken down. No lock is held.
    #[cold]
    pub(crate) fn report_pause_wait(&self, watch: Watch, wait: &PauseWait) {
        self.tell(watch, &Report::PauseWait(wait));
    }

    /// The calling thread has waited `waited` for something that is no pause. No lock is held.
    #[cold]
    pub(crate) fn report_other_wait(&self, watch: Watch, ask: Ask<'_>, waited: Duration) {
        self.tell(watch, &Report::OtherWait(&ask.waiting(None, waited)));
    }
}

/// The label of a thread that has noted itself.
fn label_of(tag: ThreadTag) -> Option<ThreadLabel> {
    (tag != ThreadTag::default()).then(|| ThreadLabel::of(tag))
}

/// The thread that runs a mutator: its own, or for a fiber one of `tags`.
fn thread_of(header: &Header, tags: impl Iterator<Item = ThreadTag>) -> Option<ThreadLabel> {
    match header.fiber() {
        None => label_of(header.thread.get()),
        Some(fiber) => {
            let mut tags = tags;
            tags.find(|tag| tag.token != 0 && fiber.is_running_on(tag.token)).map(ThreadLabel::of)
        }
    }
}

/// What is known of a mutator that runs. For whoever holds the gate, or the lock while it is attached.
fn straggler(late: &Header, waited: Duration, thread: Option<ThreadLabel>) -> Straggler {
    Straggler {
        mutator: late.id.get(),
        waited,
        region: late.checked.region(),
        last_leaf: late.checked.last_leaf(),
        call_sites: call_sites(late),
        locks: late.noted_locks(),
        activity: thread.as_ref().and_then(|thread| activity_of(thread.id)),
        thread,
    }
}

/// How many pins the calls of a mutator hold that has stopped, or is the calling thread's.
fn pins(header: &Header) -> usize {
    let mut pins = 0;
    header.roots.all(|entry| {
        pins += usize::from(matches!(entry.kind, EntryKind::Pin | EntryKind::TransitivePin));
    });
    pins
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
