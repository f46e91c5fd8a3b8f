//! The documented layout, read from a live record as a JIT's code would.

use reentry::testkit::TestVm;
use reentry::{Anchor, World, layout};

/// Reads a word of a record as machine code does.
fn word(address: usize) -> usize {
    // SAFETY: the tests pass addresses inside a live record of this thread's own mutator.
    unsafe { core::ptr::with_exposed_provenance::<usize>(address).read_volatile() }
}

/// Reads the poll word.
fn poll_word(record: usize) -> u32 {
    // SAFETY: as for `word`.
    unsafe { core::ptr::with_exposed_provenance::<u32>(record + layout::POLL).read_volatile() }
}

#[test]
fn a_jit_finds_the_state_and_the_anchor_where_the_layout_says() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let record = mutator.record_address();
    let running = word(record + layout::FRAME);
    assert_eq!(running & layout::MANAGED, layout::MANAGED, "managed");
    assert_eq!(poll_word(record) & layout::POLL_MASK, 0, "nobody wants anything");

    let anchor = Anchor::new(0, 0x2000, 0x3000);
    mutator.foreign_call().at(anchor).run(|| {
        let published = word(record + layout::FRAME);
        assert_eq!(
            published,
            running & !layout::MANAGED,
            "the record of the running activation is published"
        );
        let saved = published + layout::ANCHOR_IN_RECORD;
        assert_eq!(word(saved + layout::PC_IN_ANCHOR), anchor.pc);
        assert_eq!(word(saved + layout::SP_IN_ANCHOR), anchor.sp);
        assert_eq!(word(saved + layout::FP_IN_ANCHOR), anchor.fp);
        assert!(
            word(published + layout::MACHINE_SP_IN_RECORD).abs_diff(core::ptr::from_ref(&published).addr())
                < 1 << 20
        );
        world.pause(|_| assert_ne!(poll_word(record) & layout::POLL_MASK, 0, "a pause sets the poll word"));
        assert_eq!(poll_word(record) & layout::POLL_MASK, 0, "and clears it");
    });
    assert_eq!(word(record + layout::FRAME), running);
}

#[test]
fn the_fence_bit_says_which_strategy_a_world_has() {
    for fence in [reentry::FenceStrategy::Symmetric, reentry::FenceStrategy::probe()] {
        let world = World::builder().fence(fence).build(TestVm::new());
        let mutator = world.attach().unwrap();
        let symmetric = poll_word(mutator.record_address()) & layout::FENCE_FIRST != 0;
        assert_eq!(symmetric, fence == reentry::FenceStrategy::Symmetric);
    }
}
