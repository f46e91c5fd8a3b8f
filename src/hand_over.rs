//! References that an upcall gives to C: held by the foreign call that the upcall runs in.

use crate::activation::ForeignFrame;
use crate::mutator::Mutator;
use crate::root_stack::EntryKind;
use crate::vm::{ArgumentError, ArgumentPlan, FrameKind, StackScanner};

impl<V: StackScanner> Mutator<V> {
    /// Roots `reference` in the foreign call this upcall runs in, until that call returns: for a reference the upcall gives to C.
    ///
    /// An upcall's own roots end with the upcall, before C's caller has the result. Returns the address of the slot, which C can pass on and read through; the
    /// managed caller reads it when the call returns.
    ///
    /// Each hand-over costs a few words until then. C that runs for long, a main loop, gives references
    /// up earlier: one by one with [`hand_back`](Self::hand_back), or all of a stretch with
    /// [`begin_hand_overs`](Self::begin_hand_overs). Their words are used again.
    ///
    /// # Errors
    ///
    /// If there is no such call, or the VM refuses the reference.
    pub fn hand_over(&mut self, reference: V::Ref) -> Result<*mut V::Ref, HandOverError> {
        self.hand_over_as(EntryKind::Root, ArgumentPlan::Root, reference)
    }

    /// Pins `reference` in the foreign call this upcall runs in, until that call returns: for an address the upcall gives to C.
    ///
    /// # Errors
    ///
    /// If there is no such call, or the VM cannot pin the object.
    pub fn hand_over_pinned(&mut self, reference: V::Ref) -> Result<V::Ref, HandOverError> {
        self.hand_over_as(EntryKind::Pin, ArgumentPlan::Pin, reference).map(|_| reference)
    }

    /// Either hand-over.
    ///
    /// # Errors
    ///
    /// As [`hand_over`](Self::hand_over).
    fn hand_over_as(
        &mut self,
        kind: EntryKind,
        plan: ArgumentPlan,
        reference: V::Ref,
    ) -> Result<*mut V::Ref, HandOverError> {
        let call = self.call_below()?;
        self.vm().admit(reference, plan)?;
        Ok(call.add_result(kind, reference))
    }

    /// Ends a [`hand_over`](Self::hand_over) of the foreign call this upcall runs in: C has said that it
    /// needs the slot no more. (The Java Native Interface has `DeleteLocalRef` for it.)
    ///
    /// From here on the call does not keep the object alive, and the slot may become another
    /// reference's: C must not read it again. The search begins with what was handed over last.
    ///
    /// # Errors
    ///
    /// If there is no such call, or it has no reference in that slot.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let step = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, _: c_int| {
    ///     let object = mutator.vm().heap().alloc(&[], b"for C");
    ///     let slot = mutator.hand_over(object).expect("C called");
    ///     // ... C reads through the slot, and calls a function of the VM when it is done:
    ///     mutator.hand_back(slot).expect("handed over above");
    ///     TestVm::collect_in(mutator).expect("no root is stale").live as c_int
    /// });
    /// // C's main loop.
    /// // SAFETY: the data pointer is the closure's own, and the closure lives.
    /// let step = || unsafe { (step.data_last())(0, step.data()) };
    /// let live = mutator.foreign_call().run(|| (0..100).map(|_| step()).max());
    /// assert_eq!(live, Some(0));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn hand_back(&mut self, slot: *const V::Ref) -> Result<(), HandOverError> {
        let handed = self.call_below()?.hand_back(EntryKind::Root, |word| word.addr() == slot.addr());
        if handed { Ok(()) } else { Err(HandOverError::NotHandedOver) }
    }

    /// Ends a [`hand_over_pinned`](Self::hand_over_pinned) of the foreign call this upcall runs in, the
    /// newest of that reference.
    ///
    /// # Errors
    ///
    /// If there is no such call, or it holds no such pin.
    pub fn hand_back_pinned(&mut self, reference: V::Ref) -> Result<(), HandOverError>
    where
        V::Ref: PartialEq,
    {
        let handed = self.call_below()?.hand_back(EntryKind::Pin, |word| {
            // SAFETY: the word of a pin that was handed over holds a `V::Ref`.
            let held = unsafe { word.cast::<V::Ref>().read() };
            held == reference
        });
        if handed { Ok(()) } else { Err(HandOverError::NotHandedOver) }
    }

    /// Begins a frame of hand-overs in the foreign call this upcall runs in: all that upcalls of the call
    /// hand over from here on, [`end_hand_overs`](Self::end_hand_overs) ends. Frames nest. (The Java
    /// Native Interface has `PushLocalFrame` for it.)
    ///
    /// # Errors
    ///
    /// If there is no such call.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, UpcallClosure, World};
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // Functions of the VM that C calls: number 0 opens a frame, 1 closes it, others make objects.
    /// let api = UpcallClosure::new(&world, |mutator: &mut Mutator<TestVm>, number: c_int| match number {
    ///     0 => mutator.begin_hand_overs().map_or(-1, |()| 0),
    ///     1 => mutator.end_hand_overs().map_or(-1, |ended| ended as c_int),
    ///     _ => {
    ///         let object = mutator.vm().heap().alloc(&[], b"for C");
    ///         mutator.hand_over(object).map_or(-1, |_slot| 1)
    ///     }
    /// });
    /// // SAFETY: the data pointer is the closure's own, and the closure lives.
    /// let api = |number| unsafe { (api.data_last())(number, api.data()) };
    /// mutator.foreign_call().run(|| {
    ///     for _ in 0..10 {
    ///         api(0);
    ///         (0..5).for_each(|_| assert_eq!(api(2), 1));
    ///         assert_eq!(api(1), 5, "all of this round");
    ///     }
    ///     assert_eq!(api(1), -1, "no frame is open");
    /// });
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn begin_hand_overs(&mut self) -> Result<(), HandOverError> {
        self.call_below()?.begin_hand_overs();
        Ok(())
    }

    /// Ends the newest frame that [`begin_hand_overs`](Self::begin_hand_overs) began in the foreign call
    /// this upcall runs in, and all that was handed over since. Returns how many that were.
    ///
    /// A reference that is to outlive the frame is read from its slot before, and handed over again
    /// after: there is no safepoint in between.
    ///
    /// # Errors
    ///
    /// If there is no such call, or no frame is open in it.
    pub fn end_hand_overs(&mut self) -> Result<usize, HandOverError> {
        self.call_below()?.end_hand_overs().ok_or(HandOverError::NoFrame)
    }

    /// The record of the foreign call that this upcall runs in.
    ///
    /// # Errors
    ///
    /// If there is none.
    fn call_below(&self) -> Result<&ForeignFrame, HandOverError> {
        // SAFETY: null or a live record of this mutator.
        let call = unsafe { self.frame().older.as_ref() };
        call.filter(|call| call.kind.get() == FrameKind::ForeignCall).ok_or(HandOverError::NoCaller)
    }
}

/// Why an upcall could not hand a reference over to its caller, or take it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// The mutator is in no upcall, or in one on a foreign thread, where there is no managed caller.
    #[error(
        "there is no managed foreign call below this activation to hand a reference to; pin it with a `Pinner` instead"
    )]
    NoCaller,
    /// What is handed back was not handed over to this call, or has been handed back.
    #[error(
        "the foreign call of this upcall holds no such reference; hand back once, in an upcall of the call it was handed over to"
    )]
    NotHandedOver,
    /// A frame is ended that was not begun.
    #[error(
        "no frame of hand-overs is open in the foreign call of this upcall; end each frame once, in an upcall of the call it was begun in"
    )]
    NoFrame,
    /// The VM refuses the reference.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
}
