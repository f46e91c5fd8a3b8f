//! [`ForeignCall`]: the guard of one foreign call, from its first declared argument to the last use of its result.
//!
//! # The idea
//!
//! The bug class this crate ends: a runtime saves the caller's pc and sp, calls C, is called back, collects or moves the stack, and then re-instates what it saved.
//! For the collector time has run backwards. An argument that was dead at the pc in between is live again, with the address it had before (Go issue 17785).
//! The guard takes the arguments out of that question: what it declares is reported at every collection from the first foreign instruction to the last,
//! whatever pc the caller's frame is walked at (invariant I2).

mod choices;
mod ending_early;

use crate::activation::{ForeignFrame, Terms, after};
use crate::anchor::Anchor;
use crate::checked::CHECKED;
use crate::errno::Errno;
use crate::foreign_function::ForeignFunction;
use crate::foreign_value::ForeignValue;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::pointers::PassedAddresses;
use crate::record::{Header, Interrupt};
use crate::root::{Argument, Pinned, Root};
use crate::root_stack::{EntryKind, OpenGroup, RootMark};
use crate::state::Event;
use crate::thread::Record;
use crate::timing::Sites;
use crate::transition::{
    Manner, check_event, come_back, cross_out, leave_managed, overtaken, pending_exception, refuse,
    resume_pending, with_capture,
};
use crate::vm::{ArgumentError, ArgumentPlan, Crossing, StackScanner};
use bumpalo::Bump;
use core::alloc::Layout;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::hint::black_box;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::NonNull;
use std::time::Instant;

impl<V: StackScanner> Mutator<V> {
    /// Begins a foreign call: still managed, it collects the call's arguments.
    ///
    /// # Panics
    ///
    /// If the mutator is foreign, which safe code cannot bring about.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ffi::{c_char, CStr};
    /// use reentry::testkit::TestVm;
    /// use reentry::World;
    ///
    /// unsafe extern "C" {
    ///     fn strlen(text: *const c_char) -> usize;
    /// }
    ///
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let text = world.vm().heap().alloc(&[], b"managed\0");
    ///
    /// let mut call = mutator.foreign_call();
    /// let text = call.pin(text).expect("the test VM can pin");
    /// let payload = world.vm().heap().payload(text.get()).expect("pinned, so not stale");
    /// let length = call.run(|| unsafe { strlen(payload.cast()) });
    /// assert_eq!(length, 7);
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub fn foreign_call(&mut self) -> ForeignCall<'_, V> {
        let record = self.record();
        let header = &record.header;
        if !header.word.is_managed_in(self.frame()) {
            refuse(header, Event::ForeignCall, Location::caller());
        }
        if CHECKED {
            check_event(header, self.frame(), Event::ForeignCall, Location::caller());
        }
        let mark = header.roots.mark();
        ForeignCall {
            record,
            frame: self.frame(),
            mark,
            group: OpenGroup::at(mark),
            anchor: None,
            declared: false,
            unfinished: false,
            terms: None,
            interrupt: None,
            crossing: Crossing::ForeignCall,
            passed: PassedAddresses::default(),
            _mutator: PhantomData,
        }
    }
}

/// A foreign call being prepared, running, or run.
///
/// Dropping it ends its roots, pins and argument memory. It can run several times, with the same arguments. Leaking it after it ran leaks what it declared until the activation it was
/// made in ends (I9). What it declares takes effect when it runs: before that this thread is managed, passes no safepoint, and C has been given nothing.
///
/// # The protocol
///
/// | step | what happens | state |
/// |---|---|---|
/// | [`Mutator::foreign_call`] | the guard is made; the root stack's top is noted | managed |
/// | `root`, `pin`, `copy`, ... | entries are pushed; argument memory is bumped | managed |
/// | `run` | pc, sp, fp are written; the record is published by one store | foreign |
/// | | C runs; each upcall sets the record aside and re-instates it | |
/// | | managed again, fence, poll; wait if a pause is in force | managed |
/// | | the record popped is checked to be ours; a carried panic resumes | |
/// | drop | entries are released, argument memory is reset | managed |
#[must_use = "a foreign call that is not run only roots its arguments"]
pub struct ForeignCall<'m, V: StackScanner> {
    record: &'m Record<V>,
    frame: &'m ForeignFrame,
    mark: RootMark,
    /// What has been declared and not yet sealed: nobody can look before `run` publishes.
    group: OpenGroup,
    anchor: Option<Anchor>,
    /// Whether entries were pushed. Known to the compiler where the guard is used in one function, like `unfinished`: what a call did not use costs it
    /// nothing.
    declared: bool,
    /// Whether the record may hold argument memory, results or an error.
    unfinished: bool,
    /// What the call asks for that most do not.
    terms: Option<Terms>,
    interrupt: Option<Interrupt>,
    /// What the hooks are told.
    crossing: Crossing,
    /// Checked mode: the addresses it takes to foreign code.
    passed: PassedAddresses,
    _mutator: PhantomData<(&'m mut (), *mut ())>,
}

impl<'m, V: StackScanner> ForeignCall<'m, V> {
    #[inline(always)]
    pub(crate) fn header(&self) -> &'m Header {
        &self.record.header
    }

    #[inline(always)]
    fn push<T>(&mut self, kind: EntryKind, value: T) -> RootMark {
        self.declared = true;
        self.header().roots.push(&mut self.group, kind, value)
    }

    /// Checked mode: what `run` refuses and reports, for a call that makes no transition this time.
    #[inline(always)]
    pub(crate) fn check_leaf(&mut self, site: &'static Location<'static>) {
        if CHECKED {
            let (header, frame) = (self.header(), self.frame);
            check_event(header, frame, Event::ForeignCall, site);
            if self.declared {
                header.roots.seal(self.group);
            }
            self.passed.judge(self.shared(), header, frame, site);
        }
    }

    fn arena(&mut self) -> &'m Bump {
        self.unfinished = true;
        self.frame.arena()
    }

    /// Refuses a token of another mutator.
    ///
    /// # Panics
    ///
    /// Unless `ours`.
    #[inline(always)]
    #[track_caller]
    fn check_token(&self, ours: bool) {
        if !ours {
            refuse_token(Location::caller());
        }
    }

    #[inline(always)]
    fn shared(&self) -> &'m Shared<V> {
        // SAFETY: `world` points to the `Shared<V>` whose record this is, which outlives it.
        unsafe { &*self.header().world.cast::<Shared<V>>() }
    }

    /// The VM, while the call is being prepared and has the mutator to itself.
    #[inline(always)]
    #[must_use]
    pub fn vm(&self) -> &'m V {
        &self.shared().vm
    }

    /// Gives the walk of this activation its start: for a VM with frames of its own. The scanner gets what is given here, unchecked (obligation
    /// S7 of [`StackScanner`]). Otherwise the machine's registers are captured
    /// by `run`, as [`Vm::CAPTURE`](crate::Vm::CAPTURE) says.
    #[inline(always)]
    pub fn at(mut self, anchor: Anchor) -> Self {
        self.anchor = Some(anchor);
        self
    }

    /// Roots `reference` by value: the object lives until the call is dropped, and the guard's own slot follows it when it moves.
    ///
    /// The VM's own copies of the reference are the VM's affair: a stack slot that its map calls dead at one pc and live at another holds a stale
    /// copy afterwards. Root such a slot [in place](Self::root_in_place), or [pin](Self::pin) the object.
    ///
    /// # Panics
    ///
    /// If the VM refuses the reference, for example because it is another world's. [`try_root`](Self::try_root) gives an error instead.
    #[inline(always)]
    #[track_caller]
    pub fn root(&mut self, reference: V::Ref) -> Root<'m, V::Ref> {
        match self.try_root(reference) {
            Ok(root) => root,
            Err(error) => refuse_argument(error, Location::caller()),
        }
    }

    /// [`root`](Self::root) with an error in place of the panic.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference.
    #[inline(always)]
    pub fn try_root(&mut self, reference: V::Ref) -> Result<Root<'m, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Root)?;
        let entry = self.push(EntryKind::Root, reference);
        Ok(Root::new(entry, self.header(), false))
    }

    /// Roots the VM's own stack slot in place: it is updated whichever pc its frame is walked at, and its address follows
    /// the stack when it is relocated.
    ///
    /// # Safety
    ///
    /// `slot` is valid for reads and writes of a reference, and holds one, until the call is dropped; if it lies in a stack declared with
    /// [`Mutator::declare_stack`] it may move with that stack.
    ///
    /// # Errors
    ///
    /// Why the VM refuses the reference in the slot.
    #[inline(always)]
    pub unsafe fn root_in_place(&mut self, slot: NonNull<V::Ref>) -> Result<Root<'m, V::Ref>, ArgumentError> {
        // SAFETY: valid for reads by contract.
        self.vm().admit(unsafe { slot.as_ptr().read() }, ArgumentPlan::RootInPlace)?;
        let entry = self.push(EntryKind::InPlace, slot.as_ptr());
        Ok(Root::new(entry, self.header(), true))
    }

    /// Pins `reference`: the object lives and does not move until the call is dropped.
    ///
    /// # Errors
    ///
    /// Why the VM cannot pin it.
    #[inline(always)]
    pub fn pin(&mut self, reference: V::Ref) -> Result<Pinned<'m, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::Pin)?;
        self.push(EntryKind::Pin, reference);
        Ok(Pinned::new(reference))
    }

    /// Pins `reference` and everything reachable from it, at each collection: for a structure C walks.
    ///
    /// # Errors
    ///
    /// Why the VM cannot pin it.
    #[inline(always)]
    pub fn pin_transitively(&mut self, reference: V::Ref) -> Result<Pinned<'m, V::Ref>, ArgumentError> {
        self.vm().admit(reference, ArgumentPlan::TransitivePin)?;
        self.push(EntryKind::TransitivePin, reference);
        Ok(Pinned::new(reference))
    }

    /// Keeps a Rust value alive that C borrows: it stays borrowed as long as the call, and is not optimised away.
    #[inline(always)]
    pub fn keep_alive<T: ?Sized>(&mut self, value: &'m T) {
        self.push(EntryKind::KeepAlive, core::ptr::from_ref(value).cast::<()>());
    }

    /// Copies `value` to memory of the call, which C may read and write, aligned to 16 at least.
    ///
    /// It is the place for out-parameters as well: C writes here, where neither a collection nor a relocation moves it, and
    /// [`read`](Self::read) copies the result out when the call is managed again (I8). Nothing is dropped, hence `Copy`.
    ///
    /// In checked mode the addresses in it are [checked](Self::check) when the call runs, hence [`ForeignValue`].
    pub fn copy<T: Copy + ForeignValue>(&mut self, value: T) -> Argument<'m, T> {
        self.passed.note(&value);
        let memory = self.arena().alloc_layout(strictly_aligned(Layout::new::<T>())).cast::<T>();
        // SAFETY: just allocated, of this size and at least this alignment.
        unsafe { memory.write(value) };
        Argument::new(memory, self.header())
    }

    /// Copies a slice to memory of the call. The addresses in it are checked as those of [`copy`](Self::copy).
    ///
    /// The memory is aligned for every C type, as `malloc`'s is: bytes may be passed for an `int[]`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{World, testkit::TestVm};
    /// # let world = World::new(TestVm::new());
    /// # let mut mutator = world.attach()?;
    /// let mut call = mutator.foreign_call();
    /// call.copy_slice(b"odd");
    /// let numbers = call.copy_slice(&7_i32.to_ne_bytes());
    /// assert!(numbers.as_ptr().cast::<i32>().is_aligned());
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    pub fn copy_slice<T: Copy + ForeignValue>(&mut self, values: &[T]) -> Argument<'m, [T]> {
        self.passed.note(values);
        let memory = self.arena().alloc_layout(strictly_aligned(Layout::for_value(values))).cast::<T>();
        // SAFETY: just allocated, with room for so many values; nobody else has it.
        unsafe { memory.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len()) };
        Argument::new(NonNull::slice_from_raw_parts(memory, values.len()), self.header())
    }

    /// Copies text to memory of the call and ends it with a NUL.
    ///
    /// # Errors
    ///
    /// If the text has a NUL inside: C would see it cut short.
    pub fn copy_c_str(&mut self, text: &str) -> Result<Argument<'m, c_char>, InteriorNul> {
        if let Some(position) = text.bytes().position(|byte| byte == 0) {
            return Err(InteriorNul { position });
        }
        let bytes = self.arena().alloc_slice_fill_default::<u8>(text.len() + 1);
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        debug_assert!(CStr::from_bytes_with_nul(bytes).is_ok());
        Ok(Argument::new(NonNull::from(bytes).cast(), self.header()))
    }

    /// Checks, when the call runs, that the addresses in `value` that lie in the heap are protected: for what travels in the closure given to [`run`](Self::run).
    ///
    /// The rule is cgo's: foreign code may be given the address of an object only while something keeps the object in place. An address is protected if a pin that covers it is in force:
    /// declared by this call, before or after this check, by an older call of this mutator that is still in progress, or held by any [`Pinner`](crate::Pinner) of the world. For an object that
    /// [does not move](crate::Residence::Fixed) a root is as good. Any transitive pin in force counts as covering, since what is reachable from it is not followed.
    /// What is not protected is reported as [`Report::UnprotectedPointer`](crate::Report::UnprotectedPointer); the call goes on.
    ///
    /// [`copy`](Self::copy), [`copy_slice`](Self::copy_slice) and the arguments of [`invoke`](Self::invoke) are checked without being asked. The VM says what lies in the heap with
    /// [`Vm::locate`](crate::Vm::locate) and [`Vm::covers`](crate::Vm::covers). In checked mode only (debug builds, and the feature `checked`): otherwise it does nothing. A slice of a type
    /// without addresses costs nothing, however long.
    ///
    /// # Examples
    ///
    /// ```
    /// # use reentry::{testkit::TestVm, World};
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// let text = world.vm().heap().alloc(&[], b"text");
    /// let bytes = world.vm().heap().payload(text).unwrap();
    ///
    /// let mut call = mutator.foreign_call();
    /// call.check(&bytes);
    /// call.pin(text).unwrap(); // without this the VM would be told of an unprotected pointer
    /// // SAFETY: pinned, and four bytes long.
    /// assert_eq!(call.run(|| unsafe { *bytes }), b't');
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    pub fn check<T: ForeignValue + ?Sized>(&mut self, value: &T) {
        self.passed.note(value);
    }

    /// The record of the call's activation.
    #[cfg(feature = "libffi")]
    #[inline(always)]
    pub(crate) fn frame(&self) -> &'m ForeignFrame {
        self.frame
    }

    /// The same, for who may use call memory.
    #[cfg(feature = "libffi")]
    #[inline(always)]
    pub(crate) fn frame_with_memory(&mut self) -> &'m ForeignFrame {
        self.unfinished = true;
        self.frame
    }

    /// Checked mode: notes an address that is passed as an argument.
    #[cfg(feature = "libffi")]
    #[inline(always)]
    pub(crate) fn note_argument(&mut self, address: usize, index: usize) {
        if CHECKED {
            self.passed.push(address, Some(index));
        }
    }

    /// Reads call memory, after the crossing back.
    ///
    /// # Panics
    ///
    /// If the memory is that of another mutator's call, which may be over.
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn read<T: Copy>(&self, argument: Argument<'m, T>) -> T {
        self.check_token(argument.is_of(self.header()));
        // SAFETY: the memory holds a `T` since `copy`, and what C wrote there is what the unsafe call promised; it is reset when the
        // call is dropped, and an argument of another call of this mutator is of an older one, which is not over.
        unsafe { argument.as_ptr().read() }
    }

    /// Reads a slice of call memory, after the crossing back.
    ///
    /// # Panics
    ///
    /// As [`read`](Self::read).
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn read_slice<T: Copy>(&self, argument: Argument<'m, [T]>) -> &[T] {
        self.check_token(argument.is_of(self.header()));
        // SAFETY: as for `read`; C writes only while the call runs, which needs the guard to itself.
        unsafe { &*argument.as_ptr() }
    }

    /// Reads a rooted reference: where the object is now.
    ///
    /// # Panics
    ///
    /// If the root is another mutator's.
    #[inline]
    #[must_use]
    #[track_caller]
    pub fn get(&self, root: Root<'_, V::Ref>) -> V::Ref {
        self.check_token(root.is_of(self.header()));
        // SAFETY: the token's entry is this mutator's, and not released while the token's borrow lasts; this thread is managed.
        unsafe { root.slot().read() }
    }

    /// Becomes foreign, calls `f`, and comes back managed: the crossing.
    ///
    /// `f` runs in the foreign state: it must not touch the heap, and safe code has nothing to touch it with. It may block as long as it
    /// likes. On the way back this thread waits for a pause in force. If an upcall inside failed, its error goes on here: a panic as that panic, an exception as a panic whose
    /// payload is [`Thrown`](crate::Thrown) (see [`try_run`](Self::try_run)).
    ///
    /// # Panics
    ///
    /// With what `f` or an upcall panicked with, managed again; if an upcall was [refused](crate::UpcallRefused). If the thread is unwinding already when the call
    /// returns, an upcall's error is reported instead.
    #[inline(always)]
    #[track_caller]
    pub fn run<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let result = self.cross(Location::caller(), f);
        if self.frame.after.get() != 0 {
            self.unfinished = true;
            resume_pending(self.vm(), self.frame);
        }
        result
    }

    /// [`run`](Self::run), with the VM exception of an upcall as an error.
    ///
    /// # Errors
    ///
    /// What an upcall threw (see [`Throwing`](crate::Throwing)), at whatever depth: an exception that went past managed frames in between is the same error. Or what
    /// [`Vm::exception_for`](crate::Vm::exception_for) makes of a refused upcall.
    ///
    /// # Panics
    ///
    /// With every other error, as [`run`](Self::run).
    ///
    /// # Examples
    ///
    /// ```
    /// use reentry::testkit::{TestVm, Trap};
    /// use reentry::{Mutator, Throwing, World, upcall_fn};
    ///
    /// fn fail(_: &mut Mutator<TestVm>) -> Result<(), Trap> {
    ///     Err(Trap::NoSuchNative(7))
    /// }
    /// let callback: extern "C" fn() = upcall_fn(Throwing(fail));
    /// let world = World::new(TestVm::new());
    /// let mut mutator = world.attach()?;
    /// // A Rust closure stands for the C code here.
    /// let outcome = mutator.foreign_call().try_run(|| callback());
    /// assert_eq!(outcome, Err(Trap::NoSuchNative(7)));
    /// # Ok::<(), reentry::AttachError>(())
    /// ```
    #[inline(always)]
    #[track_caller]
    pub fn try_run<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, V::Exception> {
        let result = self.cross(Location::caller(), f);
        if self.frame.after.get() != 0 {
            self.unfinished = true;
            pending_exception(self.vm(), self.frame)?;
        }
        Ok(result)
    }

    /// The crossing out and back.
    #[inline(always)]
    fn cross<R>(&mut self, site: &'static Location<'static>, f: impl FnOnce() -> R) -> R {
        if V::TIMED {
            let _timed = Timed { sites: &self.shared().in_foreign, site, began: Instant::now() };
            return self.cross_untimed(site, f);
        }
        self.cross_untimed(site, f)
    }

    /// [`cross`](Self::cross), without a look at a clock.
    #[inline(always)]
    fn cross_untimed<R>(&mut self, site: &'static Location<'static>, f: impl FnOnce() -> R) -> R {
        let (header, frame, vm) = (self.header(), self.frame, self.vm());
        let manner = self.prepare(site);
        // Until `f` has returned: if it unwinds, the drop must look at the record.
        let unfinished = core::mem::replace(&mut self.unfinished, true);
        let result =
            with_capture::<V, R>(frame, self.anchor, site, || cross_out(vm, header, frame, manner, f));
        self.unfinished = unfinished;
        if self.declared {
            // The belt; the entries on the root stack are the guarantee. What was declared is used after the call, for all the compiler knows.
            black_box(self.mark);
        }
        result
    }

    /// Writes down what the record must have before it is published.
    #[inline(always)]
    fn prepare(&mut self, site: &'static Location<'static>) -> Manner {
        if CHECKED {
            check_event(self.header(), self.frame, Event::ForeignCall, site);
        }
        self.frame.site.set(Some(site));
        if self.declared {
            self.header().roots.seal(self.group);
        }
        if CHECKED {
            let (shared, header, frame) = (self.shared(), self.header(), self.frame);
            self.passed.judge(shared, header, frame, site);
        }
        if let Some(terms) = self.terms {
            self.frame.begin_terms(terms);
        }
        if let Some(interrupt) = self.interrupt {
            self.header().interrupts.begin(self.frame.depth, interrupt);
        }
        Manner {
            given: self.anchor.is_some(),
            terms: self.terms.is_some(),
            interruptible: self.interrupt.is_some(),
            crossing: self.crossing,
        }
    }

    /// [`run`](Self::run), and C's `errno` as it was when `f` returned, before the way back could change it.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    #[inline(always)]
    #[track_caller]
    pub fn run_with_errno<R>(&mut self, f: impl FnOnce() -> R) -> (R, Errno) {
        self.run(|| {
            let result = f();
            (result, Errno::current())
        })
    }

    /// Runs a foreign function that was looked up at run time.
    ///
    /// # Safety
    ///
    /// `function` may be called with `arguments`, and they stay valid for the call.
    ///
    /// In checked mode the addresses in the arguments are [checked](Self::check).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    #[inline(always)]
    #[track_caller]
    pub unsafe fn invoke<F: ForeignFunction>(&mut self, function: F, arguments: F::Arguments) -> F::Output {
        if CHECKED {
            F::addresses(&arguments, &mut |index, address| self.passed.push(address, Some(index)));
        }
        // SAFETY: promised by the caller.
        self.run(|| unsafe { function.call(arguments) })
    }

    /// Becomes foreign until the returned guard is dropped: for an interpreter that cannot use a closure.
    ///
    /// # Safety
    ///
    /// Foreign code is called from the function that calls this, or from one that it calls, not from one further out (its stack pointer would lie above the one recorded here). The guard is dropped, on this thread, before the mutator is used again and before the function returns that was called with it (an upcall's
    /// body, above all). Until then no managed code runs on this thread but in upcalls. (A leaked guard leaves the thread foreign, and then `&mut Mutator` proves nothing.)
    #[inline(always)]
    #[track_caller]
    pub unsafe fn enter(&mut self) -> Foreign<'_, 'm, V> {
        let site = Location::caller();
        let (header, frame, vm) = (self.header(), self.frame, self.vm());
        if !header.word.is_managed_in(frame) {
            refuse(header, Event::ForeignCall, site);
        }
        let manner = self.prepare(site);
        self.unfinished = true;
        with_capture::<V, ()>(frame, self.anchor, site, || leave_managed(vm, header, frame, manner.crossing));
        Foreign { call: self, manner }
    }
}

/// What `layout` asks for, at an address that every C type can have.
fn strictly_aligned(layout: Layout) -> Layout {
    /// The alignment of what `malloc` gives, and of `max_align_t`, on the machines there are.
    const STRICTEST: usize = 16;
    layout.align_to(STRICTEST).unwrap_or(layout)
}

/// A foreign call that is measured.
struct Timed<'m> {
    sites: &'m Sites,
    site: &'static Location<'static>,
    began: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.sites.record(self.site, self.began.elapsed());
    }
}

/// Ends the use of a token that is not this mutator's.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_token(site: &'static Location<'static>) -> ! {
    panic!(
        "reentry: what is read at {site} belongs to another mutator; read it through the call that made it"
    )
}

/// Ends the declaration of an argument that the VM refuses.
///
/// # Panics
///
/// Always.
#[cold]
#[inline(never)]
fn refuse_argument(error: ArgumentError, site: &'static Location<'static>) -> ! {
    panic!("reentry: the argument declared at {site} is refused: {error}")
}

impl<V: StackScanner> Drop for ForeignCall<'_, V> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.declared {
            self.header().roots.release_to(self.mark);
        }
        if self.unfinished && self.frame.after.get() != 0 {
            finish_slow(self.vm(), self.frame);
        }
    }
}

#[cold]
#[inline(never)]
fn finish_slow<V: StackScanner>(vm: &V, frame: &ForeignFrame) {
    overtaken(vm, frame);
    frame.finish_slow();
}

impl<V: StackScanner> fmt::Debug for ForeignCall<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignCall")
            .field("mutator", &self.header().id.get())
            .field("depth", &self.frame.depth)
            .field("anchor", &self.anchor)
            .finish_non_exhaustive()
    }
}

/// The foreign state, for as long as this guard lives. Made by [`ForeignCall::enter`].
#[must_use = "dropping it ends the foreign state at once"]
pub struct Foreign<'c, 'm, V: StackScanner> {
    call: &'c mut ForeignCall<'m, V>,
    manner: Manner,
}

impl<V: StackScanner> Foreign<'_, '_, V> {
    /// Ends the foreign state, with the VM exception of an upcall as an error.
    ///
    /// # Errors
    ///
    /// As [`ForeignCall::try_run`].
    ///
    /// # Panics
    ///
    /// As [`ForeignCall::try_run`].
    #[inline(always)]
    #[track_caller]
    pub fn leave(self) -> Result<(), V::Exception> {
        let this = core::mem::ManuallyDrop::new(self);
        this.come_back();
        if this.call.frame.after.get() != 0 {
            pending_exception(this.call.vm(), this.call.frame)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn come_back(&self) {
        let (header, frame, vm) = (self.call.header(), self.call.frame, self.call.vm());
        if self.manner.terms {
            frame.end_terms();
        }
        if self.manner.interruptible {
            header.interrupts.end(frame.depth);
        }
        come_back(vm, header, frame, self.manner.crossing);
        frame.forget_given::<V>(self.manner.given);
        black_box(self.call.mark);
    }
}

impl<V: StackScanner> Drop for Foreign<'_, '_, V> {
    #[inline(always)]
    #[track_caller]
    fn drop(&mut self) {
        self.come_back();
        let call = &self.call;
        if call.frame.after.get() & after::PENDING != 0 {
            resume_pending(call.vm(), call.frame);
        }
    }
}

impl<V: StackScanner> fmt::Debug for Foreign<'_, '_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Foreign").field(&self.call).finish()
    }
}

/// Text with a NUL inside, which C would see cut short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the text has a NUL at byte {position}, where C would end it; pass the bytes and their length instead"
)]
pub struct InteriorNul {
    /// The first NUL, in bytes from the start.
    pub position: usize,
}
