//! The operations of a random program, and how bytes are read as one.

/// How an operation finds the object it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pick {
    /// A new one.
    New,
    /// A new one that refers to an old one, if there is one.
    NewReferringTo(u8),
    /// One that has not been freed, counted from the oldest and round again; a new one if there is none.
    Old(u8),
}

/// How an argument is declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    Root,
    InPlace,
    Pin,
    TransitivePin,
    KeepAlive,
    UntilReleased,
    UntilFirstUpcall,
}

/// What a foreign call does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Foreign {
    /// Calls back once.
    CallBack,
    /// Calls back once; a jump can land here.
    Land,
    /// The same; calls back again if a jump has landed.
    LandAndCall,
    /// Calls back twice; a jump out of either lands here.
    LandTwice,
    /// The thread itself stops the world.
    Look,
    /// The thread itself stops the world, and collects.
    Collect,
    /// Another thread does.
    CollectElsewhere,
    /// Another mutator's thread goes on; it is made if it is not there.
    Switch(u8),
}

/// Where saved stack pointers of a crossing stand, if an anchor is given: sp and fp, counted in words from the stack's start and round again.
pub(crate) type Places = Option<(u8, u8)>;

/// One operation. One that is not possible where it stands is passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// An argument of the running activation's next call.
    Declare {
        plan: Plan,
        object: Pick,
        times: u8,
    },
    /// A foreign call. What is in its upcalls is what comes next, until `Return`.
    Call {
        foreign: Foreign,
        at: Places,
        catches: bool,
        leaks: bool,
    },
    /// Ends a scope, an upcall, a fiber or a thread, whichever is innermost.
    Return,
    /// Ends an upcall with a panic.
    Panic,
    /// Leaves upcalls by `longjmp`, from a foreign call or from a leaf call.
    Jump {
        to: u8,
        in_call: bool,
    },
    /// Stops the world and collects.
    Collect {
        at: Places,
    },
    /// Roots locals in a scope. What is in it is what comes next, until `Return`.
    Scope {
        object: Pick,
        times: u8,
    },
    /// Gives a reference to the caller of the upcall.
    HandOver {
        pinned: bool,
        object: Pick,
    },
    /// Ends an argument early: one of the last eight that could be, counted from the newest.
    Release(u8),
    NewHandle(Pick),
    DropHandle(u8),
    NewWeak(Pick),
    DropWeak(u8),
    PinFor {
        transitively: bool,
        object: Pick,
    },
    Unpin(u8),
    /// Moves the running mutator's managed stack: another start, another length, from the low end or the high one.
    Move {
        start: u8,
        words: u8,
        high: bool,
    },
    /// The same for any mutator's, in a pause.
    MoveStopped {
        whose: u8,
        start: u8,
        words: u8,
        high: bool,
    },
    MakeFiber,
    Resume {
        which: u8,
        at: Places,
    },
    Suspend {
        at: Places,
    },
}

fn pick(byte: u8) -> Pick {
    match byte % 4 {
        0 | 1 => Pick::New,
        2 => Pick::NewReferringTo(byte / 4),
        _ => Pick::Old(byte / 4),
    }
}

fn places(byte: u8) -> Places {
    (!byte.is_multiple_of(4)).then_some((byte / 4, byte % 16))
}

/// Mostly one; sometimes more than a group of the root stack holds, or than one of its chunks.
fn times(byte: u8) -> u8 {
    match byte % 32 {
        31 => 140,
        27..31 => 17,
        _ => 1,
    }
}

impl Op {
    /// Reads any four bytes.
    pub(crate) fn decode([kind, a, b, c]: [u8; 4]) -> Self {
        match kind % 40 {
            0..6 => {
                let plans = [
                    Plan::Root,
                    Plan::InPlace,
                    Plan::Pin,
                    Plan::TransitivePin,
                    Plan::UntilReleased,
                    Plan::UntilFirstUpcall,
                    Plan::KeepAlive,
                    Plan::InPlace,
                ];
                Self::Declare { plan: plans[usize::from(a % 8)], object: pick(b), times: times(c) }
            }
            6..14 => {
                let foreign = match a % 8 {
                    0 | 1 => Foreign::CallBack,
                    2 | 3 => Foreign::Land,
                    4 | 5 => Foreign::LandAndCall,
                    _ => Foreign::LandTwice,
                };
                Self::Call { foreign, at: places(b), catches: c.is_multiple_of(2), leaks: c % 8 == 7 }
            }
            14 => {
                let foreign = match a % 8 {
                    0..4 => Foreign::Look,
                    4..7 => Foreign::Collect,
                    _ => Foreign::CollectElsewhere,
                };
                Self::Call { foreign, at: places(b), catches: true, leaks: c % 4 == 3 }
            }
            15 | 16 => {
                Self::Call { foreign: Foreign::Switch(a), at: places(b), catches: true, leaks: c % 8 == 7 }
            }
            17..21 => Self::Return,
            21 => Self::Panic,
            22 | 23 => Self::Jump { to: a, in_call: b.is_multiple_of(2) },
            24 | 25 => Self::Collect { at: places(a) },
            26 => Self::Scope { object: pick(a), times: times(b) },
            27 => Self::HandOver { pinned: a % 2 == 1, object: pick(b) },
            28 | 39 => Self::Release(a),
            29 if a.is_multiple_of(2) => Self::NewHandle(pick(b)),
            29 => Self::DropHandle(b),
            30 if a.is_multiple_of(2) => Self::NewWeak(pick(b)),
            30 => Self::DropWeak(b),
            31 if a.is_multiple_of(2) => Self::PinFor { transitively: a % 4 == 2, object: pick(b) },
            31 => Self::Unpin(b),
            32 | 33 => Self::Move { start: a, words: b, high: c % 2 == 1 },
            34 => Self::MoveStopped { whose: c / 2, start: a, words: b, high: c % 2 == 1 },
            35 => Self::MakeFiber,
            36 | 37 => Self::Resume { which: a, at: places(b) },
            _ => Self::Suspend { at: places(a) },
        }
    }
}

/// Reads a program from any bytes: four for each operation. What is left over is nothing.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Op> {
    bytes.as_chunks().0.iter().map(|bytes| Op::decode(*bytes)).collect()
}
