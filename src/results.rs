//! What a foreign call holds beside its arguments on the root stack: references that upcalls have
//! handed to C, and arguments that can end before the call does.
//!
//! Nodes in the call's memory, linked from the newest to the oldest. C may run for as long as the
//! program does and call back again and again, so what has been handed back is used again: its node
//! leaves the list and goes to a second one, of free nodes. A node that the call itself declared has a
//! number, and is never used again (I3).
//!
//! Written by the record's own thread, while managed; read by a stopper, while the mutator is published
//! (I1). Not the facade's cells, since an arena drops nothing.

use crate::root_stack::{Entry, EntryKind, word_of};
use bumpalo::Bump;
use core::cell::{Cell, UnsafeCell};
use core::mem::MaybeUninit;
use core::ptr;

/// The number of what an upcall has handed to C: its place may be used again.
const HANDED_OVER: u64 = 0;

/// The number of a node that holds nothing: where a frame of hand-overs begins.
const FRAME: u64 = u64::MAX - 1;

/// The number of what ends with the first upcall of its call; no other has it.
pub(crate) const UNTIL_FIRST_UPCALL: u64 = u64::MAX;

struct ResultNode {
    next: Cell<*const ResultNode>,
    kind: Cell<EntryKind>,
    word: UnsafeCell<MaybeUninit<usize>>,
    /// The number by which an upcall can release it before the call ends, or what else it is.
    number: Cell<u64>,
    /// It holds nothing: an argument that has been released, or the begin of a frame.
    released: Cell<bool>,
}

/// The lists of one call. The nodes lie in its memory, which is reset only after [`clear`](Self::clear).
pub(crate) struct Results {
    newest: Cell<*const ResultNode>,
    free: Cell<*const ResultNode>,
}

/// Follows a list.
fn nodes<'r>(mut node: *const ResultNode) -> impl Iterator<Item = &'r ResultNode> {
    core::iter::from_fn(move || {
        // SAFETY: nodes live in the arena, which is reset only after both lists have been cleared.
        let this = unsafe { node.as_ref() }?;
        node = this.next.get();
        Some(this)
    })
}

impl Results {
    pub(crate) const fn new() -> Self {
        Self { newest: Cell::new(ptr::null()), free: Cell::new(ptr::null()) }
    }

    /// Forgets everything: the memory is about to be reset.
    pub(crate) fn clear(&self) {
        self.newest.set(ptr::null());
        self.free.set(ptr::null());
    }

    /// Holds `value` until the call ends, or until [`release`](Self::release) of a number that the
    /// mutator has not used before.
    pub(crate) fn declare<'a, T: Copy>(
        &self,
        kind: EntryKind,
        value: T,
        number: u64,
        arena: impl FnOnce() -> &'a Bump,
    ) -> *mut T {
        self.add(kind, Some(value), number, arena)
    }

    /// Holds `value` until the call ends, or it is handed back.
    pub(crate) fn hand_over<'a, T: Copy>(
        &self,
        kind: EntryKind,
        value: T,
        arena: impl FnOnce() -> &'a Bump,
    ) -> *mut T {
        self.add(kind, Some(value), HANDED_OVER, arena)
    }

    /// Adds a node, a free one if it is one that may be used again. Without a value it holds nothing.
    fn add<'a, T: Copy>(
        &self,
        kind: EntryKind,
        value: Option<T>,
        number: u64,
        arena: impl FnOnce() -> &'a Bump,
    ) -> *mut T {
        let free = if matches!(number, HANDED_OVER | FRAME) { self.free.get() } else { ptr::null() };
        // SAFETY: as in `nodes`.
        let node = match unsafe { free.as_ref() } {
            Some(node) => {
                self.free.set(node.next.get());
                node
            }
            None => arena().alloc(ResultNode {
                next: Cell::new(ptr::null()),
                kind: Cell::new(kind),
                word: UnsafeCell::new(MaybeUninit::uninit()),
                number: Cell::new(number),
                released: Cell::new(false),
            }),
        };
        node.next.set(self.newest.get());
        node.kind.set(kind);
        node.number.set(number);
        node.released.set(value.is_none());
        let word = word_of::<T>(node.word.get().cast());
        if let Some(value) = value {
            // SAFETY: large enough (asserted in `word_of`), and this thread's alone while it is managed.
            unsafe { word.write(value) };
        }
        self.newest.set(node);
        word
    }

    /// Begins a frame: what is handed over from here on ends with it.
    pub(crate) fn begin_frame<'a>(&self, arena: impl FnOnce() -> &'a Bump) {
        self.add::<usize>(EntryKind::Root, None, FRAME, arena);
    }

    /// Ends the newest frame. Says how many hand-overs have ended with it; `None` if there is no frame.
    pub(crate) fn end_frame(&self) -> Option<usize> {
        nodes(self.newest.get()).find(|node| node.number.get() == FRAME)?;
        let (mut link, mut ended) = (&self.newest, 0);
        // SAFETY: as in `nodes`.
        while let Some(node) = unsafe { link.get().as_ref() } {
            match node.number.get() {
                HANDED_OVER => ended += 1,
                FRAME => {
                    self.take_out(link, node);
                    break;
                }
                // What the call itself has declared since, between two runs, is no part of the frame.
                _ => {
                    link = &node.next;
                    continue;
                }
            }
            self.take_out(link, node);
        }
        Some(ended)
    }

    /// Ends the newest hand-over of a kind whose word `is_it` knows. Says whether there was one.
    pub(crate) fn hand_back(&self, kind: EntryKind, mut is_it: impl FnMut(*const ()) -> bool) -> bool {
        let mut link = &self.newest;
        // SAFETY: as in `nodes`.
        while let Some(node) = unsafe { link.get().as_ref() } {
            if (node.number.get(), node.kind.get()) == (HANDED_OVER, kind)
                && is_it(node.word.get().cast_const().cast())
            {
                self.take_out(link, node);
                return true;
            }
            link = &node.next;
        }
        false
    }

    /// Moves the node behind `link` to the free ones.
    fn take_out(&self, link: &Cell<*const ResultNode>, node: &ResultNode) {
        link.set(node.next.get());
        node.next.set(self.free.get());
        self.free.set(node);
    }

    /// Ends what was declared until the first upcall.
    pub(crate) fn end_until_first_upcall(&self) {
        nodes(self.newest.get())
            .filter(|node| node.number.get() == UNTIL_FIRST_UPCALL)
            .for_each(|node| node.released.set(true));
    }

    /// Calls `visit` for each that is held.
    pub(crate) fn each(&self, mut visit: impl FnMut(Entry)) {
        for node in nodes(self.newest.get()).filter(|node| !node.released.get()) {
            visit(Entry::new(node.kind.get(), node.word.get().cast()));
        }
    }

    /// The words of what has ended before its call.
    #[cfg(feature = "audit")]
    pub(crate) fn ended(&self) -> Vec<usize> {
        let released = nodes(self.newest.get()).filter(|node| node.released.get());
        released.chain(nodes(self.free.get())).map(|node| node.word.get().addr()).collect()
    }

    /// Whether the argument that has a number is held still; `None` if there is none.
    pub(crate) fn is_held(&self, number: u64) -> Option<bool> {
        self.find(number).map(|node| !node.released.get())
    }

    /// Ends the argument that has a number. Says whether it had not ended before; `None` if there is none.
    pub(crate) fn release(&self, number: u64) -> Option<bool> {
        self.find(number).map(|node| !node.released.replace(true))
    }

    fn find(&self, number: u64) -> Option<&ResultNode> {
        nodes(self.newest.get()).find(|node| node.number.get() == number)
    }
}
