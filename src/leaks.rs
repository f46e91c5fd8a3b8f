//! What is left over: the report of references that somebody has not given back.

use core::fmt;
use core::panic::Location;

/// How many of one kind were made at one place in the source and are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LeakSite {
    /// Where they were made: the caller of [`Mutator::handle`](crate::Mutator::handle), [`Mutator::weak_handle`](crate::Mutator::weak_handle) or
    /// [`World::pinner`](crate::World::pinner).
    pub site: &'static Location<'static>,
    /// How many: handles, or pins of the owners made there.
    pub count: usize,
}

/// The references of a world that outlive calls and have not been given back, by the place they were made at. See
/// [`World::leaks`](crate::World::leaks).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaks {
    handles: Vec<LeakSite>,
    weak_handles: Vec<LeakSite>,
    pins: Vec<LeakSite>,
}

impl Leaks {
    /// The handles that keep objects alive, whoever has them: Rust, or C as raw words.
    #[must_use]
    pub fn handles(&self) -> &[LeakSite] {
        &self.handles
    }

    /// The weak handles. They keep no object alive, only a slot.
    #[must_use]
    pub fn weak_handles(&self) -> &[LeakSite] {
        &self.weak_handles
    }

    /// The pins of the [`Pinner`](crate::Pinner)s that hold any, by where the owner was made.
    #[must_use]
    pub fn pins(&self) -> &[LeakSite] {
        &self.pins
    }

    /// Says whether anything is left that keeps an object alive: a handle or a pin. Weak handles keep none.
    #[must_use]
    pub fn keeps_objects(&self) -> bool {
        !(self.handles.is_empty() && self.pins.is_empty())
    }

    /// Says whether nothing is left, weak handles included.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.keeps_objects() && self.weak_handles.is_empty()
    }

    pub(crate) fn add_handle(&mut self, site: &'static Location<'static>) {
        add(&mut self.handles, site, 1);
    }

    pub(crate) fn add_weak_handle(&mut self, site: &'static Location<'static>) {
        add(&mut self.weak_handles, site, 1);
    }

    pub(crate) fn add_pins(&mut self, site: &'static Location<'static>, count: usize) {
        add(&mut self.pins, site, count);
    }

    /// Puts the sites in the order of the source, so that two reports can be compared.
    pub(crate) fn sort(&mut self) {
        for sites in [&mut self.handles, &mut self.weak_handles, &mut self.pins] {
            sites.sort_unstable_by_key(|leak| (leak.site.file(), leak.site.line(), leak.site.column()));
        }
    }
}

/// Counts at a site. There are few of them: each is a place in a program's source.
fn add(sites: &mut Vec<LeakSite>, site: &'static Location<'static>, count: usize) {
    match sites.iter_mut().find(|known| known.site == site) {
        Some(known) => known.count += count,
        None => sites.push(LeakSite { site, count }),
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing is left");
        }
        let mut separator = "";
        let kinds = [
            ("handle(s)", &self.handles),
            ("pin(s) of a pinner", &self.pins),
            ("weak handle(s)", &self.weak_handles),
        ];
        for (kind, sites) in kinds {
            for LeakSite { site, count } in sites {
                write!(f, "{separator}{count} {kind} made at {site}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
