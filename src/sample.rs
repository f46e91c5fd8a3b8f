//! Reading the activations of a thread that is not stopped: from a signal handler on that thread, or from another thread (I10).
//!
//! A profiler's signal may arrive at any instruction. The frame word names a complete record whenever it is not managed, and the running activation's record when it is; records are
//! linked once and for ever; so what a handler reads is whole, as of now or as of the last crossing. Two operations change older records in place, the relocation of a stack and the
//! repair after foreign code has jumped: they mark the mutator meanwhile, and a sample says that it is busy.

use crate::activation::ForeignFrame;
use crate::anchor::Anchor;
use crate::mutator::Mutator;
use crate::pause::Shared;
use crate::record::Header;
use crate::registry::PauseHeldHere;
use crate::state::Event;
use crate::thread::each_on_thread;
use crate::transition::{at_safepoint, refuse_wait_in_own_pause};
use crate::vm::{FrameKind, StackScanner};
use crate::watch::call_sites;
use crate::world::World;
use core::any::TypeId;
use core::panic::Location;

/// One activation, as a sample finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SampledActivation {
    /// The mutator's number.
    pub mutator: u64,
    /// The type of its VM.
    pub vm: TypeId,
    /// How many activations are older.
    pub depth: usize,
    /// What it was doing at its crossing; `None` for the running activation.
    pub kind: Option<FrameKind>,
    /// Where its newest frame is; `None` for the running activation, whose frames are where the machine is.
    pub anchor: Option<Anchor>,
    /// Where in the VM's source its crossing stands; `None` for the running activation.
    pub call_site: Option<&'static Location<'static>>,
}

/// The chain is being changed in place at this instant; sample again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a stack is being relocated, or skipped activations are being released; sample again at the next tick"
)]
pub struct Busy;

/// Calls `visit` for each activation of each mutator of the calling thread, newest mutator first, newest activation first.
///
/// `visit` cannot detach the mutator whose activation it is given: dropping its attachment there panics, and
/// [`World::detach_foreign_thread`] gives an error.
///
/// Async-signal-safe: it takes no lock, allocates nothing and calls nothing but `visit`, which must be so too. For the handler of a profiler's signal. A thread should have
/// attached once before the first signal (in a library loaded with `dlopen`, the first touch of its thread-locals may allocate).
///
/// # Errors
///
/// If a mutator's chain is being changed in place; what was visited before is right.
///
/// # Examples
///
/// ```
/// use reentry::testkit::TestVm;
/// use reentry::{Mutator, World, sample_thread, upcall_fn};
///
/// fn callback(_: &mut Mutator<TestVm>) {
///     let mut depths = Vec::new();
///     sample_thread(|activation| depths.push((activation.depth, activation.anchor.is_some()))).unwrap();
///     // This upcall runs; the activation below it made the foreign call.
///     assert_eq!(depths, [(1, false), (0, true)]);
/// }
/// let callback: extern "C" fn() = upcall_fn(callback);
/// let world = World::new(TestVm::new());
/// let mut mutator = world.attach()?;
/// mutator.foreign_call().run(|| callback());
/// # Ok::<(), reentry::AttachError>(())
/// ```
pub fn sample_thread(mut visit: impl FnMut(SampledActivation)) -> Result<(), Busy> {
    each_on_thread(|header| {
        // One reading of the word: state and record belong together.
        let (newest, running) = header.word.newest();
        // What `visit` does may end attachments: not this one, since the walk goes on with it.
        visit_chain(header, newest, running, &mut |activation| header.held(|| visit(activation)))
    })
}

/// Visits the chain from `newest` on, on any thread: `visit` must see to it that the mutator stays.
///
/// # Errors
///
/// It is being changed.
fn visit_chain(
    header: &Header,
    newest: *const ForeignFrame,
    running: bool,
    visit: &mut impl FnMut(SampledActivation),
) -> Result<(), Busy> {
    let before = header.changes.begin().ok_or(Busy)?;
    let mut frame = newest;
    // SAFETY: null, or a live record of this mutator.
    while let Some(record) = unsafe { frame.as_ref() } {
        let crossed = !(running && core::ptr::eq(frame, newest));
        let activation = SampledActivation {
            mutator: header.id.get(),
            vm: header.vm_type,
            depth: record.depth as usize,
            kind: crossed.then(|| record.kind.get()),
            anchor: crossed.then(|| record.anchor.get()),
            call_site: if crossed { record.site.get() } else { None },
        };
        if !header.changes.unchanged_since(before) {
            return Err(Busy);
        }
        visit(activation);
        frame = record.older;
    }
    Ok(())
}

/// What [`World::sample`] finds.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Sample {
    /// The mutator is foreign or stopped: its activations, newest first. All of one instant.
    Still(Vec<SampledActivation>),
    /// The mutator is running: the last call sites known of it, one for each activation, newest first.
    Running(Vec<&'static Location<'static>>),
}

impl<V: StackScanner> World<V> {
    /// Looks at the mutator numbered `id`, from another thread, without stopping it and without waiting for it. Returns `None` if there is no such mutator.
    ///
    /// One that is foreign or stopped is held where it is for the moment of the sample; one that is running goes on, and only its last call sites are known. Waits while a pause is
    /// in force.
    ///
    /// # Panics
    ///
    /// If this thread is managed in this world (use [`Mutator::sample`]), or holds a pause or a handshake of it.
    #[must_use]
    #[track_caller]
    pub fn sample(&self, id: u64) -> Option<Sample> {
        let site = Location::caller();
        self.refuse_if_managed("Mutator::sample", site);
        sample(self.shared(), id, site)
            .unwrap_or_else(|PauseHeldHere| refuse_wait_in_own_pause("a sample", site))
    }
}

impl<V: StackScanner> Mutator<V> {
    /// [`World::sample`], for a thread that is managed: it counts as stopped meanwhile, so what this activation did not root may have moved when it returns.
    ///
    /// # Panics
    ///
    /// As [`World::sample`].
    #[must_use]
    #[track_caller]
    pub fn sample(&mut self, id: u64) -> Option<Sample> {
        let site = Location::caller();
        at_safepoint::<V, _>(self.header(), self.frame(), Event::Pause, None, site, || {
            sample(self.shared(), id, site)
        })
        .unwrap_or_else(|PauseHeldHere| refuse_wait_in_own_pause("a sample", site))
    }
}

/// # Errors
///
/// The calling thread holds a pause.
fn sample<V: StackScanner>(
    shared: &Shared<V>,
    id: u64,
    site: &'static Location<'static>,
) -> Result<Option<Sample>, PauseHeldHere> {
    shared.glance_at(id, site, |header, frame| {
        if frame.is_null() {
            return Sample::Running(call_sites(header));
        }
        let mut activations = Vec::new();
        let visited = visit_chain(header, frame, false, &mut |activation| activations.push(activation));
        debug_assert!(visited.is_ok(), "a published mutator changes nothing");
        Sample::Still(activations)
    })
}
