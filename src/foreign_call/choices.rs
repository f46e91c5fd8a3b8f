//! What a foreign call can ask for that most do not.

use super::ForeignCall;
use crate::activation::{AfterError, Upcalls};
use crate::control::MachineState;
use crate::record::Interrupt;
use crate::vm::{Crossing, ErrorPolicy, StackScanner};

impl<'m, V: StackScanner> ForeignCall<'m, V> {
    /// Chooses what becomes of the errors of this call's upcalls; [`ErrorPolicy::Carry`] otherwise. An upcall function with a policy of its own keeps that.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::TestVm;
    /// use reentry::{ErrorPolicy, Mutator, World, upcall_fn_or};
    ///
    /// fn fail(_: &mut Mutator<TestVm>) -> c_int {
    ///     std::panic::resume_unwind(Box::new("no"))
    /// }
    /// let callback: extern "C" fn() -> c_int = upcall_fn_or(fail, || -1);
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // A Rust closure stands for the C code here. The error is reported, and ends.
    /// let result = mutator.foreign_call().on_error(ErrorPolicy::Fallback).run(|| callback());
    /// assert_eq!(result, -1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.terms.get_or_insert_default().on_error = policy;
        self
    }

    /// Lets the call's upcalls run although one has failed.
    ///
    /// Otherwise, from the first error on that the call is to go on with ([`ErrorPolicy::Carry`]), C gets the
    /// fallback value of each further upcall at once: a comparison that throws is not asked again and again by
    /// a sort that cannot be stopped. One report counts those upcalls when the call has returned
    /// ([`Report::UpcallsAfterError`](crate::Report::UpcallsAfterError)). An upcall function that must run in any case, one that frees what
    /// C gives up, is declared so by itself: [`Always`](crate::Always). Whether an error is carried is told by
    /// [`Mutator::error_pending`](crate::Mutator::error_pending).
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reentry::testkit::{TestVm, Trap};
    /// use reentry::{Mutator, Throwing, World, upcall_fn_or};
    ///
    /// fn fail(mutator: &mut Mutator<TestVm>, x: c_int) -> Result<c_int, Trap> {
    ///     if x == 0 { Err(Trap::NoSuchNative(1)) } else { Ok(c_int::from(mutator.error_pending())) }
    /// }
    /// let fail: extern "C" fn(c_int) -> c_int = upcall_fn_or(Throwing(fail), || -1);
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // A Rust closure stands for the C code here: it calls back again after the error.
    /// let outcome = mutator.foreign_call().try_run(|| assert_eq!((fail(0), fail(5)), (-1, -1)));
    /// assert_eq!(outcome, Err(Trap::NoSuchNative(1)));
    /// let outcome = mutator.foreign_call().upcalls_after_error().try_run(|| assert_eq!((fail(0), fail(5)), (-1, 1)));
    /// assert_eq!(outcome, Err(Trap::NoSuchNative(1)));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub fn upcalls_after_error(mut self) -> Self {
        self.terms.get_or_insert_default().after_error = AfterError::Run;
        self
    }

    /// Declares that the call makes no upcall. One that comes all the same is refused: C gets the upcall's fallback value, and the call panics with
    /// [`UpcallRefused::Forbidden`](crate::UpcallRefused::Forbidden), naming its call site.
    ///
    /// The declaration costs a few stores, in every build; it changes nothing for a call that keeps it. (Go has it as `#cgo nocallback`.)
    #[inline(always)]
    pub fn without_upcalls(mut self) -> Self {
        self.terms.get_or_insert_default().upcalls = Upcalls::Forbidden;
        self
    }

    /// Has the crossing put back machine state that C may change: after the call, and round each upcall, whose managed code gets the state of the managed side
    /// and after which C gets its own.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::testkit::TestVm;
    /// # use reentry::{MachineState, World};
    /// # let world = World::new(TestVm::new());
    /// # let mut mutator = world.attach()?;
    /// # extern "C" fn set_up_fast_math() -> i32 { 1 }
    /// let ready = mutator.foreign_call().preserving(MachineState::FLOATING_POINT).run(|| set_up_fast_math());
    /// assert_eq!(ready, 1);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub fn preserving(mut self, state: MachineState) -> Self {
        self.terms.get_or_insert_default().preserve = state;
        self
    }

    /// Lets other threads ask the call to return early, with [`World::interrupt`](crate::World::interrupt): they call `interrupt`, which does what makes this C
    /// code return (`sqlite3_interrupt`, a byte written to a pipe it polls, a signal to its thread). Then the call comes back as it always does; what it returns
    /// is C's affair.
    ///
    /// `interrupt` is called on the other thread, perhaps several times, perhaps just as C returns by itself; this call does not end before it has returned. It must not block for long, nor make this call again.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::sync::atomic::{AtomicBool, Ordering};
    /// use reentry::World;
    /// use reentry::testkit::TestVm;
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let (id, stop) = (mutator.id(), AtomicBool::new(false));
    /// let ask = || stop.store(true, Ordering::Relaxed);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| while !world.interrupt(id).unwrap() {});
    ///     // A Rust closure stands for the C code here.
    ///     mutator.foreign_call().interruptible(&ask).run(|| while !stop.load(Ordering::Relaxed) {});
    /// });
    /// assert_eq!(mutator.interrupt(id), Ok(false));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub fn interruptible(mut self, interrupt: &'m (dyn Fn() + Sync)) -> Self {
        self.interrupt = Some(Interrupt::new(interrupt));
        self
    }

    /// Tells the VM's hooks that the call may block: they get [`Crossing::BlockingCall`]. A VM with a global lock may keep it over short calls and release it for
    /// these. For the crate every foreign call may block.
    #[inline(always)]
    pub fn blocking(mut self) -> Self {
        self.crossing = Crossing::BlockingCall;
        self
    }
}
