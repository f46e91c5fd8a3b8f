//! What the benchmarks share: a VM that does nothing, so that only the crossing is measured, and an idle second thread.

use criterion::Criterion;
use reentry::{FenceStrategy, RootVisitor, Segment, StackScanner, Vm, World};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// A reference that refers to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word(#[expect(dead_code, reason = "only its size matters")] pub(crate) usize);

/// A VM with no frames: the crate's own cost.
#[derive(Debug)]
pub(crate) struct BenchVm;

impl Vm for BenchVm {
    type Ref = Word;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}
}

// SAFETY: there are no references, so none is missed (S1 to S5).
unsafe impl StackScanner for BenchVm {
    fn scan_segment(&self, _: &(), _: &Segment<'_>, _: &mut dyn RootVisitor<Word>) {}
}

/// A world with a strategy, or `None` where this machine does not have it.
pub(crate) fn world(fence: FenceStrategy) -> Option<World<BenchVm>> {
    fence.is_supported().then(|| World::<BenchVm>::builder().fence(fence).build(BenchVm))
}

/// Keeps a second thread in existence: some C libraries leave out locked instructions until there is one, which flatters.
pub(crate) struct SecondThread(Option<(Sender<()>, JoinHandle<()>)>);

impl SecondThread {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let (stop, stopped) = channel::<()>();
        Self(Some((
            stop,
            std::thread::spawn(move || {
                let _ended = stopped.recv();
            }),
        )))
    }
}

impl Drop for SecondThread {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            thread.join().expect("it does nothing that could panic");
        }
    }
}

/// The settings all groups share.
pub(crate) fn criterion() -> Criterion {
    Criterion::default().configure_from_args()
}
