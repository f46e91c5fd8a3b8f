//! The two values a handle is checked by: the state word of its slot, and the raw word that names it. Pure, apart from the atomics that hold them.

/// Why a raw handle was refused. Nothing has been changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// Zero, or a null pointer: never a handle.
    #[error("zero is no handle; check whether foreign code was given one, and whether it lost it")]
    Zero,
    /// The word was never given out as a handle of this world.
    #[error(
        "the word {word:#x} was never given out as a handle of this world; pass on what `Handle::into_raw` gave, to the world it is of"
    )]
    Unknown {
        /// The word.
        word: usize,
    },
    /// The handle has been released.
    #[error(
        "the handle {word:#x} has been released already; release it once, after foreign code has used it for the last time"
    )]
    Stale {
        /// The word.
        word: usize,
    },
    /// The handle was taken back, and not given out again.
    #[error(
        "the handle {word:#x} has been taken back by `World::handle_from_raw`; its owner must give it out again with `Handle::into_raw` first"
    )]
    TakenBack {
        /// The word.
        word: usize,
    },
}

// A raw word, from the highest bit: generation, tag of the world, position in the shard, shard. Under loom a table is tiny: a model looks at every slot.
const WORD_BITS: u32 = usize::BITS;
pub(super) const SHARD_BITS: u32 = if cfg!(loom) {
    0
} else if WORD_BITS == 64 {
    4
} else {
    2
};
const POSITION_BITS: u32 = if cfg!(loom) {
    4
} else if WORD_BITS == 64 {
    28
} else {
    18
};
const INDEX_BITS: u32 = SHARD_BITS + POSITION_BITS;
const TAG_BITS: u32 = if WORD_BITS == 64 { 8 } else { 4 };
const GENERATION_BITS: u32 = if WORD_BITS == 64 { 24 } else { 8 };
const _: () = assert!(INDEX_BITS + TAG_BITS + GENERATION_BITS <= WORD_BITS);

pub(super) const SHARDS: usize = 1 << SHARD_BITS;
/// The slots of a shard's first chunk, and how many are made at a time; each chunk is twice as large as the one before.
pub(super) const FIRST_CHUNK: usize = if cfg!(loom) { 2 } else { 64 };
/// As many chunks as there are positions for.
pub(super) const CHUNKS: usize = ((1 << POSITION_BITS) / FIRST_CHUNK).ilog2() as usize;

/// What a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(super) enum Kind {
    /// Released, or never used. On a stack of released slots, on a mutator's list, or between.
    Free = 0,
    /// A `Handle`'s.
    Owned = 1,
    /// Given out as a word.
    Raw = 2,
    /// A `WeakHandle`'s.
    Weak = 3,
    /// A `WeakHandle`'s whose object has died.
    Cleared = 4,
    /// Out of generations: never used again.
    Retired = 5,
}

/// The state word of a slot: its kind, whether its generation was given out as a word, the generation, and how many threads are reading its value
/// through such a word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) usize);

impl State {
    const KIND: usize = 0b111;
    const EXPOSED: usize = 1 << 3;
    const GENERATION_SHIFT: u32 = 4;
    pub(super) const LAST_GENERATION: usize = (1 << GENERATION_BITS) - 1;
    const READER_SHIFT: u32 = Self::GENERATION_SHIFT + GENERATION_BITS;
    pub(super) const ONE_READER: usize = 1 << Self::READER_SHIFT;

    pub(super) const fn kind(self) -> Kind {
        match self.0 & Self::KIND {
            0 => Kind::Free,
            1 => Kind::Owned,
            2 => Kind::Raw,
            3 => Kind::Weak,
            4 => Kind::Cleared,
            _ => Kind::Retired,
        }
    }

    pub(super) const fn with_kind(self, kind: Kind) -> Self {
        Self(self.0 & !Self::KIND | kind as usize)
    }

    pub(super) const fn generation(self) -> usize {
        self.0 >> Self::GENERATION_SHIFT & Self::LAST_GENERATION
    }

    pub(super) const fn readers(self) -> usize {
        self.0 >> Self::READER_SHIFT
    }

    pub(super) const fn is_exposed(self) -> bool {
        self.0 & Self::EXPOSED != 0
    }

    /// Given out as a word.
    pub(super) const fn exposed(self) -> Self {
        Self(self.with_kind(Kind::Raw).0 | Self::EXPOSED)
    }

    /// Released. A generation that was given out ends here (H3); it cannot overflow, since none of the last one is given out.
    pub(super) const fn released(self) -> Self {
        let free = self.with_kind(Kind::Free).0;
        if self.is_exposed() {
            Self((free & !Self::EXPOSED) + (1 << Self::GENERATION_SHIFT))
        } else {
            Self(free)
        }
    }

    /// Whether the slot can be used by who takes it from a free list.
    pub(super) const fn is_usable(self) -> bool {
        self.readers() == 0 && self.generation() < Self::LAST_GENERATION
    }

    /// Checks that `generation` is given out as a raw word now.
    ///
    /// # Errors
    ///
    /// What it is instead.
    pub(super) const fn check(self, generation: usize, word: usize) -> Result<(), HandleError> {
        if generation < self.generation() {
            return Err(HandleError::Stale { word });
        }
        if generation > self.generation() || !self.is_exposed() {
            return Err(HandleError::Unknown { word });
        }
        match self.kind() {
            Kind::Raw => Ok(()),
            _ => Err(HandleError::TakenBack { word }),
        }
    }
}

/// The raw word of a generation of a slot. Never zero, since no tag is.
pub(super) const fn compose(generation: usize, tag: usize, index: u32) -> usize {
    generation << (TAG_BITS + INDEX_BITS) | tag << INDEX_BITS | index as usize
}

/// The parts of a word that is one of the world with `tag`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parts {
    pub(super) generation: usize,
    pub(super) position: usize,
    pub(super) shard: usize,
}

/// Takes a word apart; `None` if it says that it is of another world, or no such word can be. Any word can be given.
pub(super) const fn decompose(word: usize, tag: usize) -> Option<Parts> {
    const fn low(word: usize, bits: u32) -> usize {
        word & ((1 << bits) - 1)
    }
    let generation = word >> (TAG_BITS + INDEX_BITS);
    if low(word >> INDEX_BITS, TAG_BITS) != tag || generation > State::LAST_GENERATION {
        return None;
    }
    Some(Parts { generation, position: low(word >> SHARD_BITS, POSITION_BITS), shard: low(word, SHARD_BITS) })
}

/// The tag of the world that is the `number`th of the process.
pub(super) const fn tag(number: usize) -> usize {
    1 + number % ((1 << TAG_BITS) - 1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::missing_panics_doc, reason = "a test panics to fail")]

    use super::{HandleError, INDEX_BITS, Kind, Parts, SHARD_BITS, State, TAG_BITS, compose, decompose, tag};

    #[test]
    fn a_word_gives_its_parts_back_in_its_own_world_and_nowhere_else() {
        let last = (1_u64 << INDEX_BITS) - 1;
        for generation in [0, 1, State::LAST_GENERATION] {
            for number in [0, 1, 253, 254, 255, 1000] {
                for index in [0, 1, 17, last as u32] {
                    let word = compose(generation, tag(number), index);
                    assert_ne!(word, 0);
                    let position = (index >> SHARD_BITS) as usize;
                    let shard = index as usize & ((1 << SHARD_BITS) - 1);
                    assert_eq!(decompose(word, tag(number)), Some(Parts { generation, position, shard }));
                    assert_eq!(decompose(word, tag(number + 1)), None);
                }
            }
        }
    }

    #[test]
    fn tags_are_never_zero_and_fit_their_bits() {
        assert!((0..10_000).all(|number| tag(number) != 0 && tag(number) < 1 << TAG_BITS));
    }

    #[test]
    fn a_generation_ends_when_it_was_given_out_and_only_then() {
        let new = State(0);
        let owned = new.with_kind(Kind::Owned);
        assert_eq!(owned.released().generation(), 0, "nobody has a word of it");
        let raw = owned.exposed();
        assert_eq!((raw.kind(), raw.generation()), (Kind::Raw, 0));
        assert_eq!((raw.released().kind(), raw.released().generation()), (Kind::Free, 1));
        // Taken back, and released by its owner: the word was given out all the same.
        assert_eq!(raw.with_kind(Kind::Owned).released().generation(), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, a million times")]
    fn a_slot_whose_last_generation_has_come_is_not_used_again() {
        let mut state = State(0);
        let mut uses = 0;
        while state.is_usable() {
            state = state.with_kind(Kind::Owned).exposed().released();
            uses += 1;
        }
        assert_eq!((uses, state.generation()), (State::LAST_GENERATION, State::LAST_GENERATION));
        assert_eq!(state.readers(), 0, "the generation has not run over into the readers");
    }

    #[test]
    fn a_slot_with_readers_is_not_used_and_keeps_them_through_every_change() {
        let reading = State(State(0).with_kind(Kind::Owned).exposed().0 + 2 * State::ONE_READER);
        for state in [reading, reading.released(), reading.with_kind(Kind::Owned), reading.exposed()] {
            assert_eq!(state.readers(), 2);
            assert!(!state.is_usable());
        }
        assert!(State(reading.released().0 - 2 * State::ONE_READER).is_usable());
    }

    #[test]
    fn a_word_is_good_while_its_generation_is_given_out() {
        let word = 7;
        let owned = State(0).with_kind(Kind::Owned);
        assert_eq!(owned.check(0, word), Err(HandleError::Unknown { word }), "a guess: it was not given out");
        let raw = owned.exposed();
        assert_eq!(raw.check(0, word), Ok(()));
        assert_eq!(raw.check(1, word), Err(HandleError::Unknown { word }));
        assert_eq!(raw.with_kind(Kind::Owned).check(0, word), Err(HandleError::TakenBack { word }));
        assert_eq!(raw.released().check(0, word), Err(HandleError::Stale { word }));
        assert_eq!(
            raw.released().with_kind(Kind::Owned).exposed().check(0, word),
            Err(HandleError::Stale { word })
        );
    }
}
