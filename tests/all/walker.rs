//! The walk of one mutator: every activation once, newest first, each with its own frames and declarations.

use core::ffi::c_int;
use reentry::{
    Anchor, ArgumentPlan, FrameKind, Mutator, RootVisitor, Segment, StackScanner, Vm, World, upcall_fn,
};
use reentry_foreign::foreign_call_back;
use std::sync::Mutex;

/// A VM that walks nothing and remembers what it was asked to walk.
#[derive(Debug, Default)]
struct Recorder {
    asked: Mutex<Vec<Asked>>,
}

/// One segment.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    depth: usize,
    kind: FrameKind,
    newest: bool,
    anchor: Anchor,
    older: Option<Anchor>,
    line: Option<u32>,
}

impl Vm for Recorder {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;

    fn attach(&self) {}
}

// SAFETY: it has no frames, hence no references in them (S1 to S5).
unsafe impl StackScanner for Recorder {
    fn scan_segment(&self, (): &(), segment: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {
        self.asked.lock().unwrap().push(Asked {
            depth: segment.depth(),
            kind: segment.kind(),
            newest: segment.is_newest(),
            anchor: segment.anchor(),
            older: segment.older(),
            line: segment.call_site().map(|site| site.line()),
        });
    }
}

/// Collects nothing.
#[derive(Debug, Default)]
struct Ignore(Vec<usize>);

impl RootVisitor<usize> for Ignore {
    fn slot(&mut self, slot: reentry::Slot<'_, usize>) {
        self.0.push(slot.load());
    }

    fn pinned(&mut self, reference: usize) {
        self.0.push(reference);
    }

    fn transitively_pinned(&mut self, reference: usize) {
        self.0.push(reference);
    }
}

/// The anchor of one level of the walker's test: three words that no other level has.
fn level_anchor(level: usize) -> Anchor {
    Anchor::new(0x1000 + level, 0x2000 + level, 0x3000 + level)
}

/// Go's TestCallbackCallers: call + upcall + call + upcall + call + upcall, and a safepoint on top.
#[test]
fn the_walker_crosses_calls_and_upcalls_and_yields_every_segment_once_in_order() {
    static LINES: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    fn declare_and_call(mutator: &mut Mutator<Recorder>, level: c_int) -> c_int {
        let level = usize::try_from(level).unwrap();
        if level == 3 {
            LINES.lock().unwrap().push(line!() + 1);
            mutator.pause_at(level_anchor(level), look);
            return 3;
        }
        let mut call = mutator.foreign_call().at(level_anchor(level));
        call.root(10 * level);
        call.pin(10 * level + 1).unwrap();
        call.pin_transitively(10 * level + 2).unwrap();
        let next = c_int::try_from(level + 1).unwrap();
        LINES.lock().unwrap().push(line!() + 2);
        // SAFETY: the callback takes an `int` and gives one.
        call.run(|| unsafe { foreign_call_back(upcall_fn(declare_and_call), next) })
    }
    fn look(stopped: &reentry::StoppedWorld<'_, Recorder>) {
        let lines = LINES.lock().unwrap();
        let mutator = stopped.mutators().next().unwrap();
        let mut reported = Ignore::default();
        mutator.enumerate(&mut reported);
        // Newest first, within an activation too: 20s, 10s, then 0s.
        assert_eq!(reported.0, [22, 21, 20, 12, 11, 10, 2, 1, 0]);
        let expected: Vec<_> = (0..=3_usize)
            .rev()
            .map(|depth| Asked {
                depth,
                kind: if depth == 3 { FrameKind::Safepoint } else { FrameKind::ForeignCall },
                newest: depth == 3,
                anchor: level_anchor(depth),
                older: depth.checked_sub(1).map(level_anchor),
                line: Some(lines[depth]),
            })
            .collect();
        assert_eq!(*stopped.vm().asked.lock().unwrap(), expected);
        // What the activations themselves say agrees with what the scanner was given.
        let walked: Vec<_> = mutator
            .activations()
            .map(|activation| {
                let mut declared = Vec::new();
                activation.for_each_declared(|entry| declared.push((entry.plan, entry.slot.load())));
                (activation.depth(), activation.kind(), activation.anchor(), declared)
            })
            .collect();
        assert_eq!(walked.len(), 4);
        for (index, (depth, kind, anchor, declared)) in walked.into_iter().enumerate() {
            let asked = &expected[index];
            assert_eq!((depth, kind, anchor), (asked.depth, asked.kind, asked.anchor));
            let plans = [
                (ArgumentPlan::TransitivePin, 10 * depth + 2),
                (ArgumentPlan::Pin, 10 * depth + 1),
                (ArgumentPlan::Root, 10 * depth),
            ];
            assert_eq!(declared, if depth == 3 { Vec::new() } else { plans.to_vec() });
        }
    }
    let world = World::new(Recorder::default());
    let mut attachment = world.attach().unwrap();
    assert_eq!(declare_and_call(&mut attachment, 0), 3);
    // Once each, and nothing is left when all is over.
    world.vm().asked.lock().unwrap().clear();
    let mut reported = Ignore::default();
    attachment.pause(|stopped| stopped.enumerate(&mut reported));
    assert_eq!((reported.0.len(), world.vm().asked.lock().unwrap().len()), (0, 1));
}
