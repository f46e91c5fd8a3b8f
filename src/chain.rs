//! Validation of the activation chain: does the memory that a walk is about to trust still say what the crate wrote there?
//!
//! Foreign code can write anywhere. A record it has written over sends a collector through garbage, long after and far away; validation finds it at the next crossing
//! and says which record and which word. In checked mode every crossing validates the chain of its own mutator, and so do the slow half of a poll and every enumeration: a damaged
//! chain ends the process, since nothing can be told of it to a caller that it no longer has. [`Mutator::validate`](crate::Mutator::validate) and
//! [`StoppedMutator::validate`](crate::StoppedMutator::validate) do the same in any build and give an error.
//!
//! The walk starts at the oldest record, which lies inside the mutator's own, and goes up. It reads a link only after the canary of the record that holds it, and compares the links
//! back without following them. What it reads may have been changed behind the compiler's back, so it is read volatile and as plain words.

use crate::activation::ForeignFrame;
use crate::faults::Faults;
use crate::record::Header;
use crate::root_stack::RootMark;
use crate::unwind;
use crate::vm::{Capture, FrameKind, StackScanner};
use core::fmt::{self, Write as _};
use core::ptr;

/// A mutator's activation chain is damaged: something wrote over the crate's records.
///
/// The message ends with a drawing of the chain, one line for each activation, oldest first, up to the damaged one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the activation chain of mutator {mutator} is damaged at activation #{depth}: {damage}\n{drawing}")]
#[non_exhaustive]
pub struct ChainError {
    /// The mutator.
    pub mutator: u64,
    /// The activation whose record is damaged: how many are older.
    pub depth: usize,
    /// What is wrong.
    pub damage: ChainDamage,
    /// The chain.
    pub drawing: String,
}

/// What is wrong with an activation's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainDamage {
    /// The last word of the mutator's record has been overwritten.
    #[error(
        "the last word of the mutator's own record is {found:#x}, not {expected:#x}: something wrote over it"
    )]
    MutatorCanary {
        /// What stands there.
        found: usize,
        /// What the crate wrote there.
        expected: usize,
    },
    /// The last word of the record has been overwritten.
    #[error("the last word of the record is {found:#x}, not {expected:#x}: something wrote over it")]
    Canary {
        /// What stands there.
        found: usize,
        /// What the crate wrote there.
        expected: usize,
    },
    /// The record's depth is not one more than that of the next older.
    #[error("its depth says {found}")]
    Depth {
        /// What stands there.
        found: u32,
    },
    /// The record's link to the next older one leads elsewhere.
    #[error("its link to the next older record is {found:#x}, not {expected:#x}")]
    Older {
        /// What stands there.
        found: usize,
        /// The address of the next older record.
        expected: usize,
    },
    /// The record's kind is none.
    #[error("its kind is {found}, which is no kind")]
    Kind {
        /// What stands there.
        found: u8,
    },
    /// The record's root mark is no place of the root stack, or lies below the next older one's.
    #[error("its root mark is {mark:#x}, which is not at or above {older:#x} in the root stack")]
    RootMark {
        /// What stands there.
        mark: usize,
        /// The next older record's mark.
        older: usize,
    },
    /// The root stack's top is no place of it, or lies below the newest record's mark.
    #[error("the root stack ends at {top:#x}, which is not at or above its root mark {mark:#x}")]
    RootTop {
        /// The top.
        top: usize,
        /// The newest record's mark.
        mark: usize,
    },
    /// Saved stack pointers of the thread's own stack are out of order.
    #[error("its saved {what} is {sp:#x}, above {entry:#x}, where this or the oldest activation was entered")]
    StackOrder {
        /// Which word.
        what: &'static str,
        /// Its value.
        sp: usize,
        /// The stack pointer at the entry.
        entry: usize,
    },
    /// The record that is in use is none of this mutator's.
    #[error("the record in use, {found:#x}, is none of the mutator's; this is the newest that was found")]
    NotARecord {
        /// What the mutator has for the address of its newest record.
        found: usize,
    },
}

/// Ends the process if the chain of the calling thread's mutator is damaged.
#[inline(never)]
pub(crate) fn check<V: StackScanner>(header: &Header) {
    abort_if::<V>(validate_own::<V>(header));
}

/// Ends the process on a damaged chain. A test that has taken a protection away does the damage itself, and looks further on for what comes of it.
pub(crate) fn abort_if<V: StackScanner>(validated: Result<(), ChainError>) {
    if let Err(error) = validated
        && V::FAULTS == Faults::NONE
    {
        unwind::abort(format_args!("{error}"));
    }
}

/// Validates the chain of a mutator of the calling thread.
///
/// # Errors
///
/// What is wrong.
pub(crate) fn validate_own<V: StackScanner>(header: &Header) -> Result<(), ChainError> {
    let published = header.word.published().is_some();
    validate(header, header.word.record(), published, V::CAPTURE)
}

/// Validates the chain from its oldest record to `newest`; `published`: that one is not running, so what it saved counts.
///
/// # Errors
///
/// What is wrong.
pub(crate) fn validate(
    header: &Header,
    newest: *const ForeignFrame,
    published: bool,
    capture: Capture,
) -> Result<(), ChainError> {
    let found = find_damage(header, newest, published, capture);
    found.map_err(|(at, damage)| ChainError {
        mutator: header.id.get(),
        depth: depth_of(header, at),
        damage,
        drawing: draw(header, at, damage),
    })
}

/// The walk.
///
/// # Errors
///
/// The damage, and the record it is in.
fn find_damage(
    header: &Header,
    newest: *const ForeignFrame,
    published: bool,
    capture: Capture,
) -> Result<(), (*const ForeignFrame, ChainDamage)> {
    let base = &raw const header.base;
    let (found, expected) = (header.canary(), header.expected_canary());
    if found != expected {
        return Err((base, ChainDamage::MutatorCanary { found, expected }));
    }
    let (mut frame, mut older, mut depth) = (base, ptr::null(), 0);
    let mut mark = header.roots.bottom();
    let mut oldest = None;
    loop {
        // SAFETY: the base record, or what a record with a whole canary links to: a record that lives as long as its mutator's.
        let record = unsafe { &*frame };
        check_record(record, older, depth).map_err(|damage| (frame, damage))?;
        let own = record.roots_base.get();
        if !in_order(header, mark, own) {
            return Err((frame, ChainDamage::RootMark { mark: own.addr(), older: mark.addr() }));
        }
        mark = own;
        let is_newest = ptr::eq(frame, newest);
        check_stack(header, record, &mut oldest, !is_newest || published, capture)
            .map_err(|damage| (frame, damage))?;
        if is_newest {
            break;
        }
        let newer = record.link();
        if newer.is_null() || !newer.is_aligned() {
            return Err((frame, ChainDamage::NotARecord { found: newest.addr() }));
        }
        (older, frame) = (frame, newer);
        depth += 1;
    }
    let top = header.roots.mark();
    if !in_order(header, mark, top) {
        return Err((frame, ChainDamage::RootTop { top: top.addr(), mark: mark.addr() }));
    }
    Ok(())
}

/// The words of one record.
///
/// # Errors
///
/// What is wrong.
fn check_record(record: &ForeignFrame, older: *const ForeignFrame, depth: u32) -> Result<(), ChainDamage> {
    let (found, expected) = (record.canary(), record.expected_canary());
    if found != expected {
        return Err(ChainDamage::Canary { found, expected });
    }
    let found = record.depth_now();
    if found != depth {
        return Err(ChainDamage::Depth { found });
    }
    let found = record.older_now();
    if !ptr::eq(found, older) {
        return Err(ChainDamage::Older { found: found.addr(), expected: older.addr() });
    }
    match record.kind_byte() {
        kind if FrameKind::of(kind).is_some() => Ok(()),
        found => Err(ChainDamage::Kind { found }),
    }
}

/// Says whether `newer` is a place of the root stack at or above `older`, which is one.
fn in_order(header: &Header, older: RootMark, newer: RootMark) -> bool {
    let (older, newer) = (header.roots.place_of(older), header.roots.place_of(newer));
    newer.is_some() && older <= newer
}

/// The saved stack pointers of a record, where they are known and lie in the thread's own stack: below the entry of this activation, and that
/// below the entry of the oldest. Of those in between nothing can be said: the stack of a signal handler or of a coroutine can lie in an older frame. (A crossing made with
/// `ForeignCall::enter` says no more either: its frame may be gone when an upcall comes.)
///
/// # Errors
///
/// They are out of order.
fn check_stack(
    header: &Header,
    record: &ForeignFrame,
    oldest: &mut Option<usize>,
    saved: bool,
    capture: Capture,
) -> Result<(), ChainDamage> {
    let stack = header.native_stack();
    let own = |sp: usize| sp != 0 && (stack.start..=stack.end).contains(&sp);
    let native = match (capture, record.machine_sp.get()) {
        (Capture::Anchor, 0) => record.anchor.get().sp,
        (_, sp) => sp,
    };
    let entry = Some(record.entry_sp.get()).filter(|&entry| own(entry));
    if let (Some(sp), Some(entry)) = (entry, oldest.filter(|&oldest| entry > Some(oldest))) {
        return Err(ChainDamage::StackOrder { what: "entry stack pointer", sp, entry });
    }
    if record.older_now().is_null() {
        *oldest = entry; // a foreign thread's base has none
    }
    match entry.or(*oldest) {
        Some(entry) if saved && own(native) && native > entry => {
            Err(ChainDamage::StackOrder { what: "stack pointer", sp: native, entry })
        }
        _ => Ok(()),
    }
}

/// How many records are between the base and `at`.
fn depth_of(header: &Header, at: *const ForeignFrame) -> usize {
    let mut frame = &raw const header.base;
    let mut depth = 0;
    while !ptr::eq(frame, at) {
        // SAFETY: the walk has come this way to `at`.
        frame = unsafe { (*frame).link() };
        depth += 1;
    }
    depth
}

/// One line for each activation up to the damaged one, oldest first.
fn draw(header: &Header, at: *const ForeignFrame, damage: ChainDamage) -> String {
    let mut drawing = String::new();
    let mut frame = &raw const header.base;
    for depth in 0_usize.. {
        let damaged = ptr::eq(frame, at);
        // SAFETY: the walk has come this way to `at`.
        let record = unsafe { &*frame };
        let line = Line { record, depth, damage: damaged.then_some(damage) };
        // Writing to a string does not fail.
        let _ = writeln!(drawing, "{line}");
        if damaged {
            break;
        }
        frame = record.link();
    }
    drawing.push_str("  (newer activations, if there are any, are not drawn)");
    drawing
}

/// One activation, to print.
struct Line<'r> {
    record: &'r ForeignFrame,
    depth: usize,
    damage: Option<ChainDamage>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, depth, damage } = self;
        write!(f, "  #{depth} ")?;
        match FrameKind::of(record.kind_byte()) {
            Some(kind) => write!(f, "{kind}")?,
            None => write!(f, "kind {}", record.kind_byte())?,
        }
        write!(f, " {:?}", record.anchor.get())?;
        // A record with a broken canary may hold anything in place of its site.
        match record.site.get().filter(|_| record.canary() == record.expected_canary()) {
            Some(site) => write!(f, " at {site}")?,
            None => f.write_str(" at an unknown call site")?,
        }
        if let Some(damage) = damage {
            write!(f, "   <-- {damage}")?;
        }
        Ok(())
    }
}
