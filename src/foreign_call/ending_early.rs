//! Arguments that end before their call: when an upcall releases them, or when the first upcall begins.

use super::ForeignCall;
use crate::root::{Pinned, ReleasableRoot, ReleaseToken};
use crate::root_stack::EntryKind;
use crate::vm::{ArgumentError, ArgumentPlan, StackScanner};
use core::ptr::NonNull;

impl<'m, V: StackScanner> ForeignCall<'m, V> {
    /// Roots `reference` by value until an upcall [releases](crate::Mutator::release_argument) it, or else until the call is dropped: for an argument that C
    /// says it is done with long before it returns. The one exception to I2, made by whoever holds the token.
    ///
    /// Costs a few words of call memory each time. The root of a call that is leaked ends with the next call of its activation that uses call memory, or with the upcall it was made in.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    pub fn root_until_released(
        &mut self,
        reference: V::Ref,
    ) -> Result<ReleasableRoot<'m, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Root)?;
        self.unfinished = true;
        let header = self.header();
        let number = header.releases.get() + 1;
        header.releases.set(number);
        let word = self.frame.add_releasable(EntryKind::Root, reference, number);
        // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
        let world = unsafe { (*header.world.cast::<crate::pause::Shared<V>>()).pins.number() };
        let token = ReleaseToken { world, mutator: header.id.get(), number };
        // SAFETY: the address of a word of call memory.
        Ok(ReleasableRoot::new(unsafe { NonNull::new_unchecked(word) }, token))
    }

    /// Reads a reference rooted with [`root_until_released`](Self::root_until_released): where the object is now, or `None` if it was released.
    #[must_use]
    pub fn get_unless_released(&self, root: ReleasableRoot<'_, V::Ref>) -> Option<V::Ref> {
        let header = self.header();
        let token = root.token();
        // SAFETY: as in `root_until_released`.
        let world = unsafe { (*header.world.cast::<crate::pause::Shared<V>>()).pins.number() };
        let ours = (token.world, token.mutator) == (world, header.id.get());
        // SAFETY: held by this call, so its memory is; this thread is managed.
        (ours && self.frame.is_held(token.number) == Some(true)).then(|| unsafe { root.slot().read() })
    }

    /// Roots `reference` by value until the first upcall of this call has begun, or else until the call is dropped: for what C reads before it calls back. Gives the slot, which C
    /// must not use after that.
    ///
    /// The declaration is the token that I2 asks for. What it rooted is gone before the first instruction of the upcall's body, so that a collection there frees the object. Only
    /// upcalls on this mutator count. A call that runs again does so without the root.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::testkit::TestVm;
    /// use reentry::{Mutator, World, upcall_fn};
    ///
    /// fn collect(mutator: &mut Mutator<TestVm>) -> usize {
    ///     TestVm::collect_in(mutator).expect("no root is stale").freed
    /// }
    /// let callback: extern "C" fn() -> usize = upcall_fn(collect);
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let input = world.vm().heap().alloc(&[], b"read at once");
    /// let mut call = mutator.foreign_call();
    /// call.root_until_first_upcall(input)?;
    /// // A Rust closure stands for the C code here, which reads the object and then calls back.
    /// assert_eq!(call.run(|| callback()), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn root_until_first_upcall(&mut self, reference: V::Ref) -> Result<NonNull<V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Root)?;
        Ok(self.declare_until_first_upcall(EntryKind::Root, reference))
    }

    /// Pins `reference` until the first upcall of this call has begun, or else until the call is dropped: as [`root_until_first_upcall`](Self::root_until_first_upcall), for bytes that C
    /// reads in place.
    ///
    /// # Errors
    ///
    /// Why the VM cannot pin it.
    pub fn pin_until_first_upcall(&mut self, reference: V::Ref) -> Result<Pinned<'m, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Pin)?;
        self.declare_until_first_upcall(EntryKind::Pin, reference);
        Ok(Pinned::new(reference))
    }

    fn declare_until_first_upcall(&mut self, kind: EntryKind, reference: V::Ref) -> NonNull<V::Ref> {
        self.unfinished = true;
        self.terms.get_or_insert_default().ends_with_upcall = true;
        let word = self.frame.add_until_first_upcall(kind, reference);
        // SAFETY: the address of a word of call memory.
        unsafe { NonNull::new_unchecked(word) }
    }
}
