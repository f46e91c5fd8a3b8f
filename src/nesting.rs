//! Where foreign code stands that calls in or comes back: inside the newest foreign call, or outside of upcalls that it has left without returning from them (I5).
//!
//! To release an activation that is not over would be fatal, and not to release one that is over only keeps what it holds a little longer. So an activation is released on evidence. A stack
//! pointer alone is none: the stack of a signal handler or of a coroutine can lie anywhere, also inside an older frame of the same stack.
//!
//! # What counts as evidence
//!
//! Each activation but the base was entered by a function that C called. That function is never inlined, and its frame holds [`entry_sp`](ForeignFrame::entry_sp).
//!
//! | who says so | what |
//! |---|---|
//! | the kernel | The thread runs on its signal stack. A handler interrupts the newest call, so an upcall of the handler is in that call. |
//! | the bounds of the stacks | The upcall stands on another stack than the crossing. Nothing follows from their order. |
//! | the memory itself | The place where an activation was entered is now part of the frames of the upcall that arrives, or of the C code that called it. That activation is over, and so is each newer one. |
//! | the unwinder | From the caller of the upcall it comes to the frame of the newest call: the upcall is in that call. |
//! | the unwinder | It comes to the frame of an older call without that, on one stack all the way up, and the newer activations were entered further down on that stack: they are over. |
//! | the unwinder | It comes to the end of a stack without any of these: a coroutine that nothing links to its resumer. The upcall is in the newest call. |
//!
//! Where C has no unwind tables the unwinder stops, and nothing may be known: see [`Arrived::Unknown`].

use crate::activation::ForeignFrame;
use crate::arch::{self, Walked};
use crate::record::Header;
use crate::unwind;
use crate::vm::{FrameKind, Segment, Site, Vm};
use core::iter;
use core::ops::{ControlFlow, Range};
use core::ptr;

/// How far below its entry's stack pointer a function that C enters by can have its own at a call: the arguments that it passes on the stack.
const FRAME: usize = 4096;

/// Where an upcall comes in.
pub(crate) enum Arrived<'h> {
    /// In the newest foreign call; or, if the mutator is managed, in the running activation.
    InNewest,
    /// In this older foreign call: the activations that are newer than its own are over.
    In(&'h ForeignFrame),
    /// Nothing tells. It counts as one of the newest call, and nothing is released.
    Unknown,
}

/// What a foreign call that comes back says of the activations that are newer than its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Returned {
    /// They are over.
    Over,
    /// Foreign code has left them, and they can no longer be told from one that is put down on another stack: if it goes on, it must be found out.
    Left,
    /// One of them goes on: the stack that came back was resumed from inside it.
    Inside,
    /// Nothing tells whether one of them goes on, and it must not.
    Unknown,
    /// The call's own activation is not there any more: it was left before.
    Gone,
}

/// Which stack an address is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Region {
    /// The thread's own.
    Own,
    /// The thread's signal stack, wherever that lies.
    Signal,
    /// Another: a coroutine's, a fiber's, any where the bounds are not known.
    Other,
}

/// The stacks of the calling thread.
struct Stacks {
    own: Range<usize>,
    signal: Option<arch::SignalStack>,
}

impl Stacks {
    fn of(header: &Header) -> Self {
        Self { own: header.native_stack(), signal: arch::signal_stack() }
    }

    fn region(&self, address: usize) -> Region {
        if self.signal.as_ref().is_some_and(|signal| signal.bounds.contains(&address)) {
            Region::Signal
        } else if self.own.contains(&address) {
            Region::Own
        } else {
            Region::Other
        }
    }

    /// The kernel's word.
    fn on_signal_stack(&self) -> bool {
        self.signal.as_ref().is_some_and(|signal| signal.active)
    }

    /// Says whether `newer` was entered further down than `edge`, which is in use, on the same stack; or on the signal stack, which the thread has left.
    fn is_below(&self, newer: &ForeignFrame, edge: usize) -> bool {
        let entry = newer.entry_sp.get();
        match (self.region(entry), self.region(edge)) {
            (Region::Signal, Region::Own) => !self.on_signal_stack(),
            (Region::Other, Region::Other) => entry < edge && are_on_one_stack(entry..edge),
            (a, b) => a == b && entry < edge,
        }
    }
}

/// Says whether two addresses are known to lie on one stack whose bounds are not known: every stack that is made with care has a guard page below it.
pub(crate) fn are_on_one_stack(addresses: Range<usize>) -> bool {
    arch::is_readable(addresses) == Some(true)
}

/// The base of the stack that the caller runs on, or an address that lies above each frame from the caller's to the outermost. `None` where nothing tells.
#[inline(never)]
pub(crate) fn stack_base() -> Option<usize> {
    let here = arch::stack_pointer();
    let own = arch::stack_bounds()?;
    if own.contains(&here) {
        return Some(own.end);
    }
    if let Some(signal) = arch::signal_stack().filter(|signal| signal.bounds.contains(&here)) {
        return Some(signal.bounds.end);
    }
    // A coroutine's. Its outermost frame is the library's, and leads to the stack of whoever has resumed it, or nowhere.
    let mut last = here;
    let walked = arch::walk_frames(&mut |frame| {
        if frame >= last && !own.contains(&frame) && are_on_one_stack(last..frame) {
            last = frame;
        } else if last != here {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    (walked != Walked::NoTables).then_some(last)
}

impl Segment<'_> {
    /// The addresses of the native stack that belong to this activation, for a conservative scan. Foreign frames are not in it.
    ///
    /// All of them are on one stack. They are empty where [`entry_sp`](Self::entry_sp) is 0.
    ///
    /// # Aborts
    ///
    /// If the activation was entered on one stack and made its crossing on another: managed code has switched stacks, and nothing tells where its frames are on either. Run
    /// such code on a [`Fiber`](crate::Fiber), or switch inside a foreign call. On Linux; elsewhere the stacks of a thread are not known.
    #[must_use]
    pub fn words(&self) -> Range<usize> {
        let (crossing, entry) = (self.machine_sp, self.entry_sp);
        if entry == 0 {
            return crossing..crossing;
        }
        if !self.is_on_one_stack() {
            unwind::abort(format_args!(
                "the activation that crossed at {} was entered on one stack ({entry:#x}) and crossed on another ({crossing:#x}), so a scan cannot find its frames; \
                 run managed code that switches stacks as a `Fiber`",
                Site(self.call_site)
            ));
        }
        crossing..entry
    }

    /// Says whether nothing speaks against it that the words from the crossing to the entry are those of one stack.
    fn is_on_one_stack(&self) -> bool {
        let (crossing, entry) = (self.machine_sp, self.entry_sp);
        let stack = self.thread_stack.0..self.thread_stack.1;
        match (stack.contains(&crossing), stack.contains(&entry) || entry == stack.end && entry != 0) {
            _ if crossing > entry => false,
            (true, true) => true,
            // Its bounds are not known, but each stack that is made with care has a guard page below it. Where the kernel does not tell, nothing speaks against it.
            (false, false) => arch::is_readable(crossing..entry) != Some(false),
            _ => false,
        }
    }
}

/// The record and those older, of the mutator of the calling thread.
fn chain(newest: &ForeignFrame) -> impl Iterator<Item = &ForeignFrame> {
    // SAFETY: null, or a live record of the same mutator.
    iter::successors(Some(newest), |record| unsafe { record.older.as_ref() })
}

/// Finds out where an upcall comes in whose stack pointer, `sp`, lies above the newest crossing; or one that finds its mutator managed. Slow.
#[cold]
#[inline(never)]
pub(crate) fn arrived<'h, V: Vm>(header: &'h Header, sp: usize) -> Arrived<'h> {
    let (newest, managed) = header.word.newest();
    // SAFETY: the word of an attached mutator holds a live record.
    let newest: &'h ForeignFrame = unsafe { &*newest };
    if newest.depth == 0 || !arch::TOLD {
        return Arrived::InNewest; // no activation can have been left, or nobody can know
    }
    let stacks = Stacks::of(header);
    let place = if managed { newest.entry_sp.get() } else { newest.native_sp::<V>() };
    match (stacks.region(sp), stacks.region(place)) {
        // A handler has been left, or has switched stacks.
        (Region::Own, Region::Signal) => {}
        (here, there) if here == there => {}
        _ => return Arrived::InNewest,
    }
    let mut search = Search::<V> {
        stacks: &stacks,
        newest,
        managed,
        sp,
        used: arch::stack_pointer(),
        edge: None,
        at: 0,
        straight: true,
        overlapped: None,
        found: None,
        capture: core::marker::PhantomData,
    };
    let walked = arch::walk_frames(&mut |frame| search.visit(frame));
    let Search { edge, straight, overlapped, found, .. } = search;
    match (walked, overlapped) {
        (Walked::Enough, _) => found.unwrap_or(Arrived::Unknown),
        // SAFETY: an activation that was entered has an older one.
        (_, Some(over)) => Arrived::In(unsafe { &*over.older }),
        // On the thread's own stack the end is the thread's beginning, where no frame of a call is if nobody made one.
        (Walked::ToTheEnd, _) if straight && edge.is_some_and(|edge| stacks.region(edge) == Region::Own) => {
            let base = &header.base;
            if base.kind.get() == FrameKind::ForeignThread { Arrived::Unknown } else { Arrived::InNewest }
        }
        (Walked::ToTheEnd, _) => Arrived::InNewest,
        (Walked::NoTables, _) => Arrived::Unknown,
    }
}

/// The walk from an upcall outwards.
struct Search<'s, 'h, V> {
    stacks: &'s Stacks,
    newest: &'h ForeignFrame,
    managed: bool,
    /// The upcall's stack pointer.
    sp: usize,
    /// The stack pointer of the search itself: the stack is in use from here up.
    used: usize,
    /// The stack pointer that the caller of the upcall function had at the call. Two functions that were called from one frame have different stack pointers, since their frames
    /// differ in size; this one they share but for the arguments they take on the stack.
    edge: Option<usize>,
    /// The stack pointer of the frame before.
    at: usize,
    /// The walk has come up one stack.
    straight: bool,
    /// The oldest activation whose entry is part of a frame of foreign code now.
    overlapped: Option<&'h ForeignFrame>,
    found: Option<Arrived<'h>>,
    capture: core::marker::PhantomData<V>,
}

impl<'h, V: Vm> Search<'_, 'h, V> {
    fn visit(&mut self, frame: usize) -> ControlFlow<()> {
        match self.edge {
            None if frame <= self.sp => {}
            None => {
                self.edge = Some(frame);
                self.found = self.overwritten(self.used..frame);
            }
            Some(edge) => {
                let here = self.at..frame;
                let (below, above) = (self.stacks.region(here.start), self.stacks.region(here.end));
                // What a handler has interrupted is on another stack, and is what the kernel says it is.
                let interrupted =
                    (below, above) == (Region::Signal, Region::Own) && self.stacks.on_signal_stack();
                self.straight &= interrupted || (below == above && here.start < here.end);
                self.found = self.in_frame(&here, edge);
            }
        }
        self.at = frame;
        if self.found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The call that the upcall belongs to, if the frames that led here lie where an activation was entered: the oldest such activation is over.
    fn overwritten(&self, used: Range<usize>) -> Option<Arrived<'h>> {
        let over = |record: &&ForeignFrame| record.depth > 0 && used.contains(&record.entry_sp.get());
        let oldest = chain(self.newest).filter(over).last()?;
        // SAFETY: an activation but the base has an older one.
        Some(Arrived::In(unsafe { &*oldest.older }))
    }

    /// What a frame tells that lies at `here`. `edge` is in use, on the upcall's own stack.
    fn in_frame(&mut self, here: &Range<usize>, edge: usize) -> Option<Arrived<'h>> {
        let newest = self.newest;
        let crossing = !self.managed && here.contains(&newest.native_sp::<V>());
        if crossing || self.managed && here.contains(&newest.entry_sp.get()) {
            return Some(Arrived::InNewest);
        }
        let known = self.stacks.region(edge) != Region::Other;
        let Some(call) = chain(newest).skip(1).find(|call| here.contains(&call.native_sp::<V>())) else {
            // From a call that is not over the way leads over its crossing to where its activation was entered. So what lies there now is another frame.
            if self.straight && known {
                let oldest = self.overlapped.map_or(u32::MAX, |record| record.depth);
                let entered =
                    |record: &&ForeignFrame| record.depth > 0 && here.contains(&record.entry_sp.get());
                let found = chain(newest).filter(entered).last();
                self.overlapped = found.filter(|record| record.depth < oldest).or(self.overlapped);
            }
            return None;
        };
        let crossing = call.native_sp::<V>();
        let one_stack = self.straight && (known || are_on_one_stack(edge..crossing));
        let mut newer = chain(newest).take_while(|newer| newer.depth > call.depth);
        let over = one_stack && newer.all(|newer| self.stacks.is_below(newer, crossing));
        Some(if over { Arrived::In(call) } else { Arrived::Unknown })
    }
}

/// Finds out what has become of the activations that are newer than that of `frame`, whose foreign call has come back. Slow.
#[cold]
#[inline(never)]
pub(crate) fn returned<V: Vm>(header: &Header, frame: &ForeignFrame) -> Returned {
    let (newest, managed) = header.word.newest();
    // SAFETY: the word of an attached mutator holds a live record.
    let newest = unsafe { &*newest };
    let newer = || chain(newest).take_while(|newer| !ptr::eq(*newer, frame));
    if !chain(newest).any(|record| ptr::eq(record, frame)) {
        return Returned::Gone;
    }
    let (used, here) = (arch::stack_pointer(), frame.native_sp::<V>());
    if !arch::TOLD {
        return Returned::Over;
    }
    let stacks = Stacks::of(header);
    let is_over =
        |newer: &ForeignFrame| (used..here).contains(&newer.entry_sp.get()) || stacks.is_below(newer, here);
    let open = || newer().filter(|newer| !is_over(newer));
    if open().next().is_none() {
        return Returned::Over;
    }
    // The frames of whoever resumed the stack that came back are below, where the unwinder knows the way.
    let mut at = 0;
    let walked = arch::walk_frames(&mut |sp| {
        let here = at..sp;
        at = sp;
        // A frame that was entered there, and not one of C that keeps a coroutine's stack in it.
        let entered = |entry: usize| here.contains(&entry) && entry - here.start < FRAME;
        if here.start != 0 && open().any(|newer| entered(newer.entry_sp.get())) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if walked == Walked::Enough {
        return Returned::Inside;
    }
    // What runs managed does not look again when it goes on. What is on the thread's own stack is not left by a return on another.
    let own = |newer: &ForeignFrame| stacks.region(newer.entry_sp.get()) == Region::Own;
    if open().any(|newer| {
        (managed && ptr::eq(newer, newest)) || (own(newer) && stacks.region(here) != Region::Own)
    }) {
        return Returned::Unknown;
    }
    Returned::Left
}
