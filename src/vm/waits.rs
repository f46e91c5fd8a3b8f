//! What is reported of waits that have lasted long: who waits, for whom, what the others do, and what to do.
//!
//! Each of these is plain data, taken down while the crate's lock was held and reported when it was not.

use super::FrameKind;
use crate::checked::Region;
use crate::os_thread::ThreadLabel;
use core::fmt;
use core::panic::Location;
use core::time::Duration;

/// A call site in the VM's source.
type CallSite = &'static Location<'static>;

/// A lock that the VM has [noted](crate::Mutator::note_lock): its name, and where it was noted.
type NamedLock = (&'static str, CallSite);

/// What a thread asked for that has to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Wanted {
    /// To stop the world.
    Pause,
    /// To stop one mutator.
    Handshake,
    /// To look at one mutator.
    Sample,
    /// To attach itself.
    Attach,
    /// To be attached for its first upcall.
    AttachForUpcall,
    /// To detach.
    Detach,
    /// To interrupt a foreign call.
    Interrupt,
    /// To know which mutators there are: for a handshake with each, or a shutdown.
    Mutators,
    /// To shut the world down.
    Shutdown,
    /// To go on after a foreign call.
    Return,
    /// To go on after a poll, or another safepoint.
    Safepoint,
    /// To begin an upcall.
    Upcall,
    /// To make its first upcall, in a world that is not [open](crate::World::open) yet.
    Open,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "stop the world",
            Self::Handshake => "shake hands with a mutator",
            Self::Sample => "sample a mutator",
            Self::Attach => "attach",
            Self::AttachForUpcall => "attach for its first upcall",
            Self::Detach => "detach",
            Self::Interrupt => "interrupt a foreign call",
            Self::Mutators => "list the mutators",
            Self::Shutdown => "shut the world down",
            Self::Return => "go on after a foreign call",
            Self::Safepoint => "go on after a safepoint",
            Self::Upcall => "begin an upcall",
            Self::Open => "make its first upcall in a world that is not open yet",
        })
    }
}

/// A thread that waits: which one, what for, and where it asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiting {
    /// The thread.
    pub thread: ThreadLabel,
    /// The number of its mutator, if it has one already.
    pub mutator: Option<u64>,
    /// What it asked for.
    pub wants: Wanted,
    /// Where it asked; of a thread that C called back on, the foreign call it is in.
    pub site: Option<CallSite>,
    /// The upcall it wants to make, by the name of its function or closure.
    pub upcall: Option<String>,
    /// The upcalls it is in, newest first: the foreign call of each, or `None` on a thread that C made.
    pub within: Vec<Option<CallSite>>,
    /// How long it has waited.
    pub waited: Duration,
}

/// A mutator that does not stop, or has not detached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Straggler {
    /// Its number.
    pub mutator: u64,
    /// The thread that runs it; `None` for a fiber that no thread runs.
    pub thread: Option<ThreadLabel>,
    /// How long it has been waited for.
    pub waited: Duration,
    /// The leaf call or the region without collections that it is in: in checked mode (debug builds, and the feature `checked`).
    pub region: Option<Region>,
    /// Other builds: where it began its last leaf call, which may be over.
    pub last_leaf: Option<CallSite>,
    /// The last call sites known of it, one for each activation, newest first: of a running activation that of its last crossing, if it made one.
    pub call_sites: Vec<CallSite>,
    /// The locks it has [noted](crate::Mutator::note_lock), with the place where.
    pub locks: Vec<NamedLock>,
    /// What its thread does at this moment, in the system's words (Linux).
    pub activity: Option<String>,
}

/// A mutator that has stopped, or is in foreign code, and holds something that another may wait for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// Its number.
    pub mutator: u64,
    /// The thread that runs it; `None` for a fiber that no thread runs.
    pub thread: Option<ThreadLabel>,
    /// What it does.
    pub kind: FrameKind,
    /// Where.
    pub call_site: Option<CallSite>,
    /// How many pins its calls hold.
    pub pins: usize,
    /// The locks it has [noted](crate::Mutator::note_lock), with the place where.
    pub locks: Vec<NamedLock>,
}

/// Mutators that do the same at the same place.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Group {
    /// What they do; `None` if they run.
    pub kind: Option<FrameKind>,
    /// Where.
    pub call_site: Option<CallSite>,
    /// How many there are.
    pub count: usize,
}

/// A thread has waited long for a mutator to stop: what [`Report::StopWait`](super::Report::StopWait) tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StopWait {
    /// Who waits.
    pub waiter: Waiting,
    /// Who is waited for.
    pub late: Straggler,
    /// The mutators that have stopped, or are in foreign code, and hold pins or noted locks. If the one that is late waits for one of these, both wait for ever.
    pub holders: Vec<Holder>,
    /// The other mutators that were asked to stop, without the one of the thread that waits, in groups, the largest first.
    pub others: Vec<Group>,
    /// How many mutators were not asked to stop.
    pub unasked: usize,
}

/// The pause, or handshake, that is in force or about to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PauseInForce {
    /// What was asked for.
    pub wants: Wanted,
    /// Where.
    pub site: Option<CallSite>,
    /// The thread that asked.
    pub thread: ThreadLabel,
    /// How long ago.
    pub since: Duration,
    /// Who has not stopped for it yet; `None` if everybody has, and what was to be done in the pause is being done.
    pub late: Option<Straggler>,
}

/// A thread has waited long for a pause to end: what [`Report::PauseWait`](super::Report::PauseWait) tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PauseWait {
    /// Who waits.
    pub waiter: Waiting,
    /// How many pins the calls of its mutator hold.
    pub pins: usize,
    /// The locks its mutator has [noted](crate::Mutator::note_lock), with the place where.
    pub locks: Vec<NamedLock>,
    /// What it waits for; `None` if that has ended at this very moment.
    pub pause: Option<PauseInForce>,
}

/// How many call sites, holders and groups a text names.
const NAMED: usize = 5;

/// A duration as people say it.
struct Lasting(Duration);

impl fmt::Display for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= Duration::from_secs(1) {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        } else {
            write!(f, "{} ms", self.0.as_millis())
        }
    }
}

/// # Errors
///
/// The formatter's.
fn write_held(f: &mut fmt::Formatter<'_>, pins: usize, locks: &[NamedLock]) -> fmt::Result {
    if pins > 0 {
        write!(f, "\n    it holds {pins} pin(s)")?;
    }
    locks.iter().try_for_each(|(lock, site)| write!(f, "\n    it holds the lock `{lock}` since {site}"))
}

/// # Errors
///
/// The formatter's.
fn write_mutator(
    f: &mut fmt::Formatter<'_>,
    mutator: Option<u64>,
    thread: Option<&ThreadLabel>,
) -> fmt::Result {
    match (mutator, thread) {
        (Some(mutator), Some(thread)) => write!(f, "mutator {mutator}, {thread}"),
        (Some(mutator), None) => write!(f, "mutator {mutator}, which no thread runs"),
        (None, Some(thread)) => write!(f, "{thread}"),
        (None, None) => f.write_str("a thread that is gone"),
    }
}

impl Waiting {
    /// The first two lines.
    ///
    /// # Errors
    ///
    /// The formatter's.
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a thread has waited {} to {}\n  who waits: ", Lasting(self.waited), self.wants)?;
        write_mutator(f, self.mutator, Some(&self.thread))?;
        if let Some(upcall) = &self.upcall {
            write!(f, "\n    for the upcall {upcall}")?;
        }
        match (self.site, self.wants) {
            (None, _) => Ok(()),
            (Some(site), Wanted::Return | Wanted::Upcall) => {
                write!(f, "\n    of the foreign call at {site}")
            }
            (Some(site), _) => write!(f, "\n    at {site}"),
        }?;
        for call in self.within.iter().take(NAMED) {
            match call {
                Some(site) => write!(f, "\n    in an upcall of the foreign call at {site}")?,
                None => f.write_str("\n    in an upcall on a thread that foreign code made")?,
            }
        }
        if self.within.len() > NAMED {
            write!(f, "\n    and so on, {} deep", self.within.len())?;
        }
        Ok(())
    }
}

impl Straggler {
    /// # Errors
    ///
    /// The formatter's.
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_mutator(f, Some(self.mutator), self.thread.as_ref())?;
        match self.region {
            Some(region) => write!(f, "\n    it is managed, {region}")?,
            None => f.write_str("\n    it is managed")?,
        }
        if let Some(site) = self.last_leaf {
            write!(f, "\n    its last leaf call, which it may be in still, was at {site}")?;
        }
        match self.call_sites.split_first() {
            None => f.write_str("\n    it has made no crossing yet")?,
            Some((newest, older)) => {
                write!(f, "\n    its last crossing was at {newest}")?;
                for site in older.iter().take(NAMED) {
                    write!(f, "\n      in an upcall of the foreign call at {site}")?;
                }
                if older.len() > NAMED {
                    write!(f, "\n      and so on, {} deep", self.call_sites.len())?;
                }
            }
        }
        if let Some(activity) = &self.activity {
            write!(f, "\n    its thread {activity}")?;
        }
        write_held(f, 0, &self.locks)
    }

    /// What may keep it, and what to do about that.
    ///
    /// # Errors
    ///
    /// The formatter's.
    fn write_advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.region {
            Some(Region::Leaf(_)) => {
                "\n  what it may be: a leaf call that blocks, or takes long; an upcall that it waits for on another\
                 \n    thread waits for this pause, and neither ends\
                 \n  what to do: make the call with `ForeignCall::run`, which a pause does not wait for"
            }
            Some(Region::NoCollection(_)) => {
                "\n  what it may be: a region without collections that takes long, or waits for somebody\
                 \n  what to do: end the region before it waits, and keep it short"
            }
            None if self.last_leaf.is_some() => {
                "\n  what it may be: that leaf call, if it blocks: an upcall that it waits for on another thread waits\
                 \n    for this pause, and neither ends; or a long loop without a poll, C that was called without a\
                 \n    foreign call, a join (also that of `thread::scope`), a mutex or a channel, waited for while managed\
                 \n  what to do: make what can block a `ForeignCall::run`, which a pause does not wait for; poll in the\
                 \n    loop. A build with the feature `checked` says whether it is the leaf call"
            }
            None => {
                "\n  what it may be: a long loop without a poll; C that was called without a foreign call; a join\
                 \n    (also that of `thread::scope`), a mutex, a channel or a file, waited for while managed\
                 \n  what to do: poll in the loop; wait inside `ForeignCall::run`, which a pause does not wait for"
            }
        })
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}: ", Lasting(self.waited))?;
        self.write(f)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_mutator(f, Some(self.mutator), self.thread.as_ref())?;
        write!(f, ": {}", self.kind)?;
        if let Some(site) = self.call_site {
            write!(f, " at {site}")?;
        }
        write_held(f, self.pins, &self.locks)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{} x {kind}", self.count)?,
            None => write!(f, "{} x not stopped either", self.count)?,
        }
        match self.call_site {
            Some(site) => write!(f, " at {site}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for StopWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.waiter.write(f)?;
        f.write_str("\n  who does not stop: ")?;
        self.late.write(f)?;
        self.late.write_advice(f)?;
        for holder in self.holders.iter().take(NAMED) {
            if Some(holder.mutator) == self.waiter.mutator {
                f.write_str("\n  who may be waited for: the thread that waits")?;
                write_held(f, holder.pins, &holder.locks)?;
            } else {
                write!(f, "\n  who may be waited for: {holder}")?;
            }
        }
        if self.holders.len() > NAMED {
            write!(f, "\n  and {} more that hold locks or pins", self.holders.len() - NAMED)?;
        }
        if !self.others.is_empty() {
            f.write_str("\n  the others:")?;
            for group in self.others.iter().take(NAMED) {
                write!(f, "\n    {group}")?;
            }
            let rest = self.others.iter().skip(NAMED).map(|group| group.count).sum::<usize>();
            if rest > 0 {
                write!(f, "\n    {rest} x elsewhere")?;
            }
        }
        if self.unasked > 0 {
            write!(f, "\n  not asked to stop: {} more", self.unasked)?;
        }
        Ok(())
    }
}

impl fmt::Display for PauseWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.waiter.write(f)?;
        write_held(f, self.pins, &self.locks)?;
        let Some(pause) = &self.pause else {
            return f.write_str("\n  what it waited for has just ended");
        };
        write!(
            f,
            "\n  what it waits for: {} wanted to {}, {} ago",
            pause.thread,
            pause.wants,
            Lasting(pause.since)
        )?;
        if let Some(site) = pause.site {
            write!(f, "\n    at {site}")?;
        }
        if let Some(late) = &pause.late {
            f.write_str("\n  who does not stop for that: ")?;
            late.write(f)?;
            return late.write_advice(f);
        }
        f.write_str("\n    everybody has stopped for it, and what is done in the pause goes on")?;
        f.write_str(match self.waiter.wants {
            Wanted::AttachForUpcall | Wanted::Upcall | Wanted::Attach => {
                "\n  what it may be: a long pause; or the pause waits for this thread, and neither ends: a finaliser\
                 \n    or a thread of the collector that calls in, while the collector waits for it\
                 \n  what to do: let nothing that a pause waits for call in or attach; run finalisers after the pause"
            }
            _ => {
                "\n  what it may be: a long pause; or what runs in the pause waits for this thread, or for a lock\
                 \n    that this thread holds, and neither ends\
                 \n  what to do: wait in a pause for nothing that a mutator must do"
            }
        })
    }
}

impl Waiting {
    /// What to do about a wait that is for no pause.
    ///
    /// # Errors
    ///
    /// The formatter's.
    fn write_alone(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)?;
        f.write_str(
            "\n  what it waits for: `World::open`\
             \n  what to do: call `World::open` when the VM is ready, on every way out of its start; or let\
             \n    early upcalls be refused (`Early::Refuse`)",
        )
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_alone(f)
    }
}
