//! An anchor is what safe code says; the words of a segment are the crate's own.

use core::ops::Range;
use reentry::{
    Anchor, Capture, RelocationError, RootVisitor, Segment, StackEnd, StackScanner, StoppedWorld, Vm, World,
};

/// A VM with machine anchors, of which it is given false ones.
struct Machine;

impl Vm for Machine {
    type Ref = usize;
    type Local = ();
    type Exception = core::convert::Infallible;
    const CAPTURE: Capture = Capture::Anchor;

    fn attach(&self) {}
}

// SAFETY: there are no references, so none is missed (S1 to S5, S7).
unsafe impl StackScanner for Machine {
    fn scan_segment(&self, _: &(), _: &Segment<'_>, _: &mut dyn RootVisitor<usize>) {}
}

/// The words of each segment, newest first.
fn words(stopped: &StoppedWorld<'_, Machine>) -> Vec<Range<usize>> {
    let activations = stopped.mutators().flat_map(|mutator| mutator.activations());
    activations.map(|activation| activation.segment().expect("it has frames").words()).collect()
}

fn here() -> usize {
    let local = core::hint::black_box(0_u8);
    core::ptr::from_ref(core::hint::black_box(&local)).addr()
}

#[test]
fn the_words_of_a_segment_are_those_of_the_stack_whatever_anchor_was_given() {
    let world = World::new(Machine);
    let mut mutator = world.attach().unwrap();
    let lie = Anchor::new(1, 0x10, 0x20);
    let near = |words: Vec<Range<usize>>| {
        assert_eq!(words.len(), 1);
        assert!(words[0].start.abs_diff(here()) < 1 << 20, "{words:x?}");
        assert!(words[0].end == words[0].start || words[0].end > here(), "{words:x?}");
    };
    near(mutator.pause_at(lie, words));
    near(mutator.foreign_call().at(lie).run(|| world.pause(words)));
    // A captured anchor after a given one: nothing of the given one is left.
    let (anchor, captured) = mutator.foreign_call().run(|| {
        world.pause(|stopped| {
            let anchor =
                stopped.mutators().flat_map(|mutator| mutator.activations()).next().unwrap().anchor();
            (anchor, words(stopped))
        })
    });
    assert_eq!(captured[0].start, anchor.sp, "the sp that was captured is where the words start");
    near(captured);
    let mut call = mutator.foreign_call().at(lie);
    // SAFETY: the guard is dropped here, before anything else is done with the mutator.
    let foreign = unsafe { call.enter() };
    near(world.pause(words));
    drop(foreign);
}

#[test]
fn a_stack_is_not_moved_onto_another() {
    let world = World::new(Machine);
    let mut mutator = world.attach().unwrap();
    mutator.declare_stack(0x1000..0x2000).unwrap();
    mutator.declare_stack(0x3000..0x4000).unwrap();
    // SAFETY: refused before anything is moved; no slot lies in either.
    let refused = unsafe { mutator.relocate_stack(0x1000..0x2000, 0x3800..0x4800, StackEnd::Low) };
    assert_eq!(refused, Err(RelocationError::Overlaps { declared: 0x3800..0x4800, known: 0x3000..0x4000 }));
    // Onto its own old place is the VM's affair: it may have shrunk where it stands.
    // SAFETY: no slot lies in it.
    assert_eq!(unsafe { mutator.relocate_stack(0x1000..0x2000, 0x1000..0x1800, StackEnd::Low) }, Ok(0));
}
