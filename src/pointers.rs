//! The pointer check of checked mode: addresses of heap objects that foreign code is given, and that nothing keeps in place.
//!
//! The rule is cgo's: what C is given either lies outside the heap or is pinned for as long as C has it. An address is *protected* if
//!
//! - a pin that covers it is in force: declared by this call, by an older call of this mutator that is still in progress, by an upcall through
//!   [`Mutator::hand_over_pinned`](crate::Mutator::hand_over_pinned), or held by any [`Pinner`](crate::Pinner) of the world;
//! - or a transitive pin is in force: what is reachable from it is not followed here, so it counts as covering;
//! - or its object does not move anyway ([`Residence::Fixed`]) and one of those calls roots it.
//!
//! Addresses are collected as they are declared and judged when the call runs, so that a pin may be declared after the copy that needs it.

use crate::activation::ForeignFrame;
use crate::checked::CHECKED;
use crate::foreign_value::ForeignValue;
use crate::pause::Shared;
use crate::record::Header;
use crate::root_stack::{Entry, EntryKind};
use crate::vm::{ArgumentPlan, Report, Residence, StackScanner, tell};
use core::panic::Location;

/// One address a call takes to foreign code.
#[derive(Clone, Copy)]
struct Passed {
    address: usize,
    /// Which argument of [`ForeignCall::invoke`](crate::ForeignCall::invoke) it is, or is in.
    argument: Option<usize>,
}

/// The addresses a call takes to foreign code. Empty, and of no size, in a build that does not check.
#[derive(Default)]
pub(crate) struct PassedAddresses {
    #[cfg(any(debug_assertions, feature = "checked"))]
    passed: Vec<Passed>,
}

impl PassedAddresses {
    #[cfg(any(debug_assertions, feature = "checked"))]
    fn list(&mut self) -> Option<&mut Vec<Passed>> {
        CHECKED.then_some(&mut self.passed)
    }

    #[cfg(not(any(debug_assertions, feature = "checked")))]
    fn list(&mut self) -> Option<&mut Vec<Passed>> {
        None
    }

    /// Notes the addresses in `value`.
    #[inline(always)]
    pub(crate) fn note<T: ForeignValue + ?Sized>(&mut self, value: &T) {
        if CHECKED && T::HAS_ADDRESSES {
            value.addresses(&mut |address| self.push(address, None));
        }
    }

    /// Notes one address; null is none.
    pub(crate) fn push(&mut self, address: usize, argument: Option<usize>) {
        if let Some(list) = self.list().filter(|_| address != 0) {
            list.push(Passed { address, argument });
        }
    }

    /// Reports what is not protected as the call at `site` is about to run. What the call keeps (its copies) is looked at again when it runs again; what was
    /// reported is not.
    #[cold]
    #[inline(never)]
    pub(crate) fn judge<V: StackScanner>(
        &mut self,
        shared: &Shared<V>,
        header: &Header,
        frame: &ForeignFrame,
        call_site: &'static Location<'static>,
    ) {
        let Some(list) = self.list().filter(|list| !list.is_empty()) else { return };
        let mut protection = Protection::of(shared, header, frame);
        list.retain(|&Passed { address, argument }| {
            let Some(residence) = shared.vm.locate(address) else { return false };
            let protected = protection.covers(&shared.vm, address, residence);
            if !protected {
                tell(&shared.vm, &Report::UnprotectedPointer { address, call_site, argument, residence });
            }
            protected && argument.is_none()
        });
    }
}

/// What a call's addresses may lie in: collected once, since there may be as many addresses as pins.
struct Protection<R> {
    pinned: Vec<R>,
    rooted: Vec<R>,
    /// A transitive pin is in force: anything may be reachable from it.
    everything: bool,
    /// Where the search begins. Addresses often come in the order of their declarations, and the next is found at once.
    next: usize,
}

impl<R: Copy> Protection<R> {
    fn of<V: StackScanner<Ref = R>>(shared: &Shared<V>, header: &Header, frame: &ForeignFrame) -> Self {
        let mut protection = Self { pinned: Vec::new(), rooted: Vec::new(), everything: false, next: 0 };
        let mut look = |entry: Entry| {
            let (list, word) = match entry.kind {
                EntryKind::TransitivePin => {
                    protection.everything = true;
                    return;
                }
                EntryKind::KeepAlive => return,
                EntryKind::Pin => (&mut protection.pinned, entry.word::<R>()),
                EntryKind::Root => (&mut protection.rooted, entry.word::<R>()),
                // SAFETY: an in-place entry holds the address of a slot; this thread is managed.
                EntryKind::InPlace => (&mut protection.rooted, unsafe { entry.word::<*mut R>().read() }),
            };
            // SAFETY: the guard that declared the entry vouches that the word holds a reference until its call ends.
            list.push(unsafe { word.read() });
        };
        header.roots.all(&mut look);
        let mut record = core::ptr::from_ref(frame);
        // SAFETY: records are linked for ever and live as long as their mutator's.
        while let Some(call) = unsafe { record.as_ref() } {
            call.results(&mut look);
            record = call.older;
        }
        // They came newest first.
        protection.pinned.reverse();
        shared.pins.for_each(|plan, reference| {
            protection.everything |= plan == ArgumentPlan::TransitivePin;
            protection.pinned.push(reference);
        });
        protection
    }

    /// Says whether `address` lies in what is protected, given that its object is in the heap.
    fn covers<V: StackScanner<Ref = R>>(&mut self, vm: &V, address: usize, residence: Residence) -> bool {
        if self.everything {
            return true;
        }
        let count = self.pinned.len();
        let found =
            (0..count).map(|step| (self.next + step) % count).find(|&at| vm.covers(self.pinned[at], address));
        if let Some(at) = found {
            self.next = at + 1;
            return true;
        }
        residence == Residence::Fixed && self.rooted.iter().any(|&root| vm.covers(root, address))
    }
}
