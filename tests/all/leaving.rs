//! A mutator that leaves has no frames: what its last crossing recorded is not scanned.

use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::testkit::TestVm;
use reentry::{FrameKind, RootVisitor, Segment, StackScanner, Vm, World};
use std::sync::mpsc::channel;

/// A VM that counts the segments it is asked to scan.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Vm for Counting {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}
}

// SAFETY: there are no references, so none is missed (S1 to S5).
unsafe impl StackScanner for Counting {
    fn scan_segment(&self, _: &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Nothing;

impl RootVisitor<usize> for Nothing {
    fn slot(&mut self, _: reentry::Slot<'_, usize>) {}
    fn pinned(&mut self, _: usize) {}
    fn transitively_pinned(&mut self, _: usize) {}
}

/// The stack of a thread that has exited is gone; a scan that started from its last crossing would read freed memory.
#[test]
fn a_leaked_attachment_of_an_exited_thread_has_no_frames_to_scan() {
    let world = World::new(Counting::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut attachment = world.attach().unwrap();
            attachment.foreign_call().run(|| world.pause(|stopped| stopped.enumerate(&mut Nothing)));
            assert_eq!(world.vm().0.load(Ordering::Relaxed), 1, "while it called, its frames were scanned");
            #[expect(clippy::mem_forget, reason = "leaking is what is tested")]
            core::mem::forget(attachment);
        });
    });
    // `scope` may return before the thread's destructors have run; the pause waits for what they do.
    world.pause(|stopped| {
        stopped.enumerate(&mut Nothing);
        let kinds: Vec<_> = stopped.mutators().flat_map(|m| m.activations()).map(|a| a.kind()).collect();
        assert_eq!(kinds, [FrameKind::Leaving]);
    });
    assert_eq!(world.vm().0.load(Ordering::Relaxed), 1, "and not again");
}

/// Leaking keeps alive what the call declared (I9).
#[test]
fn what_a_leaked_call_declared_outlives_its_thread() {
    let world = World::new(TestVm::new());
    let kept = world.vm().heap().alloc(&[], b"kept");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let attachment = Box::leak(Box::new(world.attach().unwrap()));
            let mut call = attachment.foreign_call();
            call.pin(kept).unwrap();
            call.run(|| ());
            #[expect(clippy::mem_forget, reason = "leaking is what is tested")]
            core::mem::forget(call);
        });
    });
    world.pause(|stopped| world.vm().collect(stopped)).unwrap();
    assert_eq!(world.vm().heap().bytes(kept).unwrap(), b"kept");
}

/// A mutator that is dropped while a pause is in force waits for its end, and is not walked meanwhile.
#[test]
fn a_mutator_that_waits_to_detach_is_not_walked() {
    let world = World::new(Counting::default());
    let (started, start) = channel();
    std::thread::scope(|scope| {
        let leaving = scope.spawn({
            let world = &world;
            move || {
                let attachment = world.attach().unwrap();
                started.send(()).unwrap();
                // Managed, and it never polls: the pause can begin only once it is on its way out.
                std::thread::sleep(core::time::Duration::from_millis(30));
                drop(attachment);
            }
        });
        start.recv().unwrap();
        world.pause(|stopped| {
            stopped.enumerate(&mut Nothing);
            for activation in stopped.mutators().flat_map(|m| m.activations()) {
                assert_eq!(activation.kind(), FrameKind::Leaving);
            }
            assert!(!leaving.is_finished(), "it waits for the pause to end");
        });
    });
    assert_eq!(world.vm().0.load(Ordering::Relaxed), 0);
    assert_eq!(world.attached(), 0);
}
