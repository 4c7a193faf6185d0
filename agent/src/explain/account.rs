//! To whom does each resident byte belong? Every byte is given once, by its address; the first owner keeps it.

use std::{collections::BTreeMap, ops::Range};

use super::{
    claims::Claims,
    model::{LibcFacts, Owned, Place},
    owner::Owner,
    whose::Pages,
};
use crate::{
    erts::{alloc::CarrierFound, mmapper::SuperCarrier},
    extents::Extents,
    libc::{
        glibc::{self, ChunkKind},
        thread,
    },
    mapping::{Backing, Mapping},
    target::memory::ReadMemory,
    view::{MappedMemory, ProcessView},
};

/// Places that are named one by one.
const PLACES: usize = 20;

/// The account of a process's resident memory.
#[derive(Debug)]
pub(super) struct Account<'a> {
    view: &'a ProcessView,
    claims: Claims,
    owned: BTreeMap<Owner, u64>,
    unattributed: u64,
    unowned: Vec<Place>,
    mapped: Vec<Place>,
    pages: Pages,
    /// Whether all of the VM's and of libc's memory was found. If not, what is left over may be theirs.
    pub(super) complete: bool,
}

/// A closed account.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) owners: Vec<Owned>,
    pub(super) unattributed: u64,
    pub(super) unowned: Vec<Place>,
    pub(super) mapped: Vec<Place>,
    pub(super) counted_twice: u64,
    pub(super) pages: Pages,
}

impl<'a> Account<'a> {
    /// An empty one; `pages` are asked about.
    pub(super) fn new(view: &'a ProcessView, pages: Pages) -> Self {
        Self {
            view,
            claims: Claims::default(),
            owned: BTreeMap::new(),
            unattributed: 0,
            unowned: Vec::new(),
            mapped: Vec::new(),
            pages,
            complete: true,
        }
    }

    fn give(&mut self, owner: Owner, bytes: u64) {
        if bytes > 0 {
            let sum = self.owned.entry(owner).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }

    /// Claims `range` for `owner`; returns the resident bytes that it got.
    fn claim(&mut self, range: Range<u64>, owner: Owner) -> u64 {
        let granted = self.claims.claim(range);
        granted.iter().for_each(|part| self.pages.give(part, &owner));
        let bytes = granted.iter().map(|part| self.view.resident.bytes_in(part)).sum();
        self.give(owner, bytes);
        bytes
    }

    /// Gives a carrier of `allocator` its parts. `lazily_freed` of its free bytes are given up.
    pub(super) fn carrier(&mut self, carrier: &CarrierFound, allocator: &str, lazily_freed: u64) {
        let range = carrier.range();
        let resident = self.view.resident.bytes_in(&range);
        self.claims.claim(range.clone());
        // Literals are a part of the code that refers to them.
        let user = if allocator == "literal_alloc" { Owner::VmCode } else { Owner::VmUsed(allocator.to_owned()) };
        // Where blocks and free space change from moment to moment, it is the carrier that matters.
        self.pages.give(&range, &user);
        let split = Split::of(carrier, resident);
        let Some(Split { used, unused, overhead }) = split else {
            self.unattributed = self.unattributed.saturating_add(resident);
            let what = format!("a carrier of {allocator} whose blocks are not known");
            self.unowned.push(Place { start: range.start, end: range.end, what, bytes: resident });
            return;
        };
        let lazily_freed = lazily_freed.min(unused);
        self.give(user, used);
        self.give(Owner::VmUnused(allocator.to_owned()), unused - lazily_freed);
        self.give(Owner::VmLazyfree, lazily_freed);
        self.give(Owner::VmOverhead, overhead);
    }

    /// Segments that mseg keeps.
    pub(super) fn cached(&mut self, segments: &[Range<u64>]) {
        for segment in segments {
            self.claim(segment.clone(), Owner::VmCached);
        }
    }

    /// What is left of super carriers, when carriers and cached segments have theirs.
    pub(super) fn super_carriers(&mut self, carriers: &[SuperCarrier]) {
        for carrier in carriers {
            self.claim(carrier.whole.clone(), Owner::VmCached);
        }
    }

    /// The heap of glibc. `vm` is what the VM has claimed.
    pub(super) fn glibc(
        &mut self,
        memory: &(impl ReadMemory + ?Sized),
        vm: &Extents,
    ) -> Result<LibcFacts, glibc::LibcError> {
        let mut facts = LibcFacts::default();
        let view = self.view;
        facts.heap = glibc::walk(view, memory, vm, &mut |kind, range| {
            let is_used = matches!(kind, ChunkKind::InUse | ChunkKind::Mapped);
            if is_used {
                facts.vm_bytes = facts.vm_bytes.saturating_add(vm.bytes_in(&range));
            }
            let (owner, sum) = match kind {
                ChunkKind::InUse | ChunkKind::Mapped | ChunkKind::Header => {
                    (Owner::NativeUsed, &mut facts.resident_used)
                }
                ChunkKind::Free | ChunkKind::Fastbin | ChunkKind::Top => {
                    (Owner::NativeRetained, &mut facts.resident_free)
                }
            };
            let bytes = self.claim(range, owner);
            *sum = sum.saturating_add(bytes);
        })?;
        self.complete &= facts.heap.defects.is_empty();
        Ok(facts)
    }

    /// The stacks of threads, in what nobody has claimed so far.
    pub(super) fn stacks(&mut self, memory: &(impl ReadMemory + ?Sized)) -> usize {
        let view = self.view;
        let is_candidate = |mapping: &Mapping| {
            let Mapping { permissions, backing, .. } = mapping;
            matches!(backing, Backing::Anonymous) && permissions.read && permissions.write && !permissions.shared
        };
        let fresh = view.mappings.iter().filter(|memory| memory.rss > 0 && is_candidate(&memory.mapping));
        let unclaimed: Vec<_> =
            fresh.flat_map(|memory| self.claims.free_in(memory.mapping.start.0..memory.mapping.end.0)).collect();
        let stacks = thread::find(view, memory, &unclaimed);
        for stack in &stacks {
            self.claim(stack.range.clone(), Owner::Stacks);
        }
        stacks.len()
    }

    /// Gives what is left to what it is mapped from, and closes the account.
    pub(super) fn close(mut self) -> Closed {
        let view = self.view;
        let mut data: Vec<(Range<u64>, Owner)> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut code = std::collections::BTreeSet::new();
        for MappedMemory { mapping, .. } in &view.mappings {
            match &mapping.backing {
                Backing::File(path) if seen.insert(path.as_str()) => {
                    let owner = if *path == view.beam { Owner::VmStatic } else { file(path) };
                    data.extend(view.data_of(path).into_iter().map(|range| (range, owner.clone())));
                }
                Backing::Memory(name) if mapping.permissions.execute => {
                    code.insert(name.as_str());
                }
                _ => {}
            }
        }
        for (range, owner) in data {
            self.claim(range, owner);
        }
        let mut counted_twice = 0_u64;
        for memory in &view.mappings {
            let mapping = &memory.mapping;
            if let Backing::Memory(name) = &mapping.backing
                && code.contains(name.as_str())
            {
                counted_twice = counted_twice.saturating_add(memory.rss.saturating_sub(memory.pss));
            }
            let range = mapping.start.0..mapping.end.0;
            match self.owner_of(mapping, &code) {
                Some(owner) => self.rest(range, &owner),
                None => self.leave(range, &what(mapping)),
            }
        }
        // Pages that were seen after the mappings were, or before.
        self.leave(0..u64::MAX, "no mapping");
        self.finish(counted_twice)
    }

    /// The owner of what is left of a mapping.
    fn owner_of(&self, mapping: &Mapping, code: &std::collections::BTreeSet<&str>) -> Option<Owner> {
        match &mapping.backing {
            Backing::File(path) if path.starts_with("/dev/shm/") => Some(Owner::Shared),
            Backing::File(path) => Some(file(path)),
            Backing::Memory(name) if code.contains(name.as_str()) => Some(Owner::VmCode),
            Backing::Memory(_) => Some(Owner::Shared),
            Backing::Kernel(_) => Some(Owner::Kernel),
            Backing::Stack => Some(Owner::Stacks),
            Backing::Anonymous if mapping.is_jit() => Some(Owner::VmCode),
            Backing::Anonymous | Backing::Heap => self.complete.then_some(Owner::NativeMapped),
        }
    }

    fn rest(&mut self, range: Range<u64>, owner: &Owner) {
        let is_mapped = *owner == Owner::NativeMapped;
        for part in self.claims.claim(range) {
            self.pages.give(&part, owner);
            let bytes = self.view.resident.bytes_in(&part);
            self.give(owner.clone(), bytes);
            if is_mapped && bytes > 0 {
                let what = "fresh pages".to_owned();
                self.mapped.push(Place { start: part.start, end: part.end, what, bytes });
            }
        }
    }

    fn leave(&mut self, range: Range<u64>, what: &str) {
        for part in self.claims.claim(range) {
            let bytes = self.view.resident.bytes_in(&part);
            if bytes > 0 {
                self.unattributed = self.unattributed.saturating_add(bytes);
                self.unowned.push(Place { start: part.start, end: part.end, what: what.to_owned(), bytes });
            }
        }
    }

    fn finish(self, counted_twice: u64) -> Closed {
        let Self { owned, unattributed, unowned, mapped, pages, .. } = self;
        let mut owners: Vec<_> = owned.into_iter().map(|(owner, bytes)| Owned { owner, bytes }).collect();
        owners.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.owner.cmp(&other.owner)));
        Closed { owners, unattributed, unowned: largest(unowned), mapped: largest(mapped), counted_twice, pages }
    }
}

/// The resident bytes of a carrier by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) used: u64,
    pub(super) unused: u64,
    pub(super) overhead: u64,
}

impl Split {
    /// Divides the `resident` bytes of a carrier. Where its blocks were not walked, what is resident beyond the bytes
    /// of its blocks is free. `None`: not even those are known.
    pub(super) fn of(carrier: &CarrierFound, resident: u64) -> Option<Self> {
        let overhead = carrier.resident_overhead.min(resident);
        let rest = resident - overhead;
        let unused = match &carrier.tally {
            Some(tally) => tally.resident_free_bytes.min(rest),
            None => rest.saturating_sub(carrier.used()?.1),
        };
        Some(Self { used: rest - unused, unused, overhead })
    }
}

fn file(path: &str) -> Owner {
    Owner::Files(path.rsplit('/').next().unwrap_or(path).to_owned())
}

fn what(mapping: &Mapping) -> String {
    match &mapping.backing {
        Backing::Heap => "the heap of brk(2)".to_owned(),
        _ => "fresh pages".to_owned(),
    }
}

fn largest(mut places: Vec<Place>) -> Vec<Place> {
    places.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.start.cmp(&other.start)));
    places.truncate(PLACES);
    places
}
