//! Takes the probes on allocation functions away and brings them back, while everything else goes on.
//!
//! A probe that is attached costs the node its trap whatever the program does, so that only one that is gone costs nothing.
//! To attach takes well under a millisecond for each. To take one away takes the kernel about 0.1 s, and one after the other
//! however many ask for it (`perf_uprobe_destroy` in `kernel/trace/trace_event_perf.c` waits under `event_mutex`), so that a
//! thread does it: the busiest functions first.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    os::fd::AsFd as _,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
    programs::{
        UProbe,
        uprobe::{UProbeLink, UProbeScope},
    },
};
use beamscope_probe::Block;
use thiserror::Error;

use super::{
    plan::{AttachPlan, Point, StackEngine},
    session::{Session, SessionError, in_map, load, program_mut, share},
    wire::Wire,
};

type LiveBlocks = HashMap<MapData, u64, Wire<Block>>;

/// The probes on allocation functions.
#[derive(Debug)]
pub(super) struct BlockProbes {
    /// In the order in which they are attached.
    points: Vec<Point>,
    pid: NonZeroU32,
    /// Those that are attached, by their index in `points`.
    links: Vec<(usize, UProbeLink)>,
    /// The tables of live blocks, where nobody empties them.
    tables: Option<Vec<(&'static str, LiveBlocks)>>,
}

/// Probes that are being taken away.
#[derive(Debug)]
pub struct Leaving(JoinHandle<Left>);

/// What there is when they are gone.
#[derive(Debug)]
struct Left {
    tables: Vec<(&'static str, LiveBlocks)>,
    live: Result<Vec<(u64, Block)>, SessionError>,
}

/// Why the blocks of a window are not known.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// The thread that took the probes away did not come to its end.
    #[error("the thread that takes the probes away ended early")]
    Lost,
    /// A table could not be read or emptied.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl BlockProbes {
    /// Divides the points of a plan into those on allocation functions and the others.
    pub(super) fn new<'a>(
        plan: &'a AttachPlan,
        pid: NonZeroU32,
        ebpf: &Ebpf,
    ) -> Result<(Self, Vec<&'a Point>), SessionError> {
        let (blocks, others): (Vec<&Point>, Vec<&Point>) =
            plan.points.iter().partition(|point| is_on_blocks(point.program));
        let mut points: Vec<Point> = blocks.into_iter().cloned().collect();
        points.sort_by_key(|point| rank(point.program));
        let tables = [table(ebpf, "LIVE")?, table(ebpf, "VM_LIVE")?];
        Ok((Self { points, pid, links: Vec::new(), tables: Some(tables.into()) }, others))
    }
}

/// Whether a program follows blocks. Mapping calls and requests for carriers are few, so that they are always followed.
fn is_on_blocks(program: &str) -> bool {
    let others = ["mmap", "munmap", "mremap", "brk", "mapped", "carrier_requested"];
    !others.iter().any(|other| StackEngine::Kernel.program(other) == program || *other == program)
}

/// When a probe is attached: returns first, since a call whose return is missed would look as if it never ended; then what
/// takes blocks away, since one that is allocated before would look as if it stayed.
fn rank(program: &str) -> u8 {
    match program {
        "allocated" | "allocated_walking" | "vm_allocated" | "vm_allocated_walking" => 0,
        "free" | "vm_free" | "vm_api_free" => 1,
        "realloc" | "reallocarray" => 2,
        _ => 3,
    }
}

/// A handle of its own on a table of live blocks.
fn table(ebpf: &Ebpf, name: &'static str) -> Result<(&'static str, LiveBlocks), SessionError> {
    let Some(Map::HashMap(data)) = ebpf.map(name) else { return Err(SessionError::Missing { kind: "map", name }) };
    let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(|error| in_map(name)(MapError::IoError(error)))?;
    let map = Map::HashMap(MapData::from_fd(descriptor).map_err(in_map(name))?);
    Ok((name, HashMap::try_from(map).map_err(in_map(name))?))
}

impl Session {
    /// Attaches the probes on allocation functions that are not attached.
    pub fn follow_blocks(&mut self) -> Result<(), SessionError> {
        self.meter.settle();
        for (index, point) in self.blocks.points.iter().enumerate() {
            if self.blocks.links.iter().all(|(attached, _)| *attached != index) {
                let link = attach_link(&mut self.attached, point, self.blocks.pid)?;
                self.blocks.links.push((index, link));
            }
        }
        Ok(())
    }

    /// Begins to take them away, and then to empty the tables of live blocks. `None` where that is going on already.
    pub fn leave_blocks(&mut self) -> Option<Leaving> {
        let tables = self.blocks.tables.take()?;
        Some(self.leave(tables))
    }

    /// Begins to take them away for good, and leaves the tables of live blocks as they are. Whoever drops the session need
    /// not wait for it: what is not gone when beamscope ends, the kernel takes away.
    pub fn leave_blocks_alone(&mut self) {
        drop(self.leave(Vec::new()));
    }

    fn leave(&mut self, mut tables: Vec<(&'static str, LiveBlocks)>) -> Leaving {
        let hits = self.meter.hits(&self.attached);
        let mut links = std::mem::take(&mut self.blocks.links);
        let points = &self.blocks.points;
        let order = leaving_order(points, |program| hits.get(program).copied().unwrap_or(0));
        links.sort_by_key(|(index, _)| order.iter().position(|place| place == index));
        let links: Vec<UProbeLink> = links.into_iter().map(|(_, link)| link).collect();
        Leaving(thread::spawn(move || {
            // Each waits until the kernel has taken its probe away.
            links.into_iter().for_each(drop);
            let mut live = Ok(Vec::new());
            for (name, table) in &mut tables {
                if let Ok(blocks) = &mut live
                    && let Err(error) = empty(name, table, blocks)
                {
                    live = Err(error);
                }
            }
            Left { tables, live }
        }))
    }

    /// Takes back what [`Session::leave_blocks`] gave away, after waiting for it: the blocks that were live.
    pub fn left(&mut self, leaving: Leaving) -> Result<Vec<(u64, Block)>, LeaveError> {
        let Left { tables, live } = leaving.0.join().map_err(|_panic| LeaveError::Lost)?;
        self.blocks.tables = Some(tables);
        Ok(live?)
    }

    /// Sets the share of each processor's time that walking the stack of every allocation may take.
    pub fn set_walk_share(&mut self, walk_share: f64) -> Result<(), SessionError> {
        self.settings.walk_share = share(walk_share);
        self.write_settings()
    }
}

impl Leaving {
    /// Whether waiting for it takes no time.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

/// Indices of `points` in the order in which they are taken away: by function, the busiest first, since a function costs the
/// node its traps until all of its probes are gone. Of each, the entry first: what is entered then still returns.
fn leaving_order(points: &[Point], hits: impl Fn(&str) -> u64) -> Vec<usize> {
    let mut functions: BTreeMap<(&PathBuf, u64), (u64, Vec<usize>)> = BTreeMap::new();
    for (index, point) in points.iter().enumerate() {
        let (busy, of_function) = functions.entry((&point.path, point.offset)).or_default();
        of_function.push(index);
        *busy = (*busy).max(match rank(point.program) {
            // All functions have the same.
            0 => 0,
            // What was allocated before is still to be seen going.
            1 => hits(point.program) / 2,
            _ => hits(point.program),
        });
    }
    let mut functions: Vec<(u64, Vec<usize>)> = functions.into_values().collect();
    functions.sort_by_key(|(busy, _)| std::cmp::Reverse(*busy));
    let entry_first = |mut of_function: Vec<usize>| {
        of_function.sort_by_key(|index| std::cmp::Reverse(points.get(*index).map_or(0, |point| rank(point.program))));
        of_function
    };
    functions.into_iter().flat_map(|(_, of_function)| entry_first(of_function)).collect()
}

/// Takes all blocks out of a table that nobody writes to.
fn empty(name: &'static str, table: &mut LiveBlocks, blocks: &mut Vec<(u64, Block)>) -> Result<(), SessionError> {
    // The kernel begins its search for the key after one that is gone from the start of the table: so all keys first.
    let addresses = table.keys().collect::<Result<Vec<u64>, MapError>>().map_err(in_map(name))?;
    for address in addresses {
        match table.get(&address, 0) {
            Ok(block) => blocks.push((address, block.0)),
            Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(in_map(name)(error)),
        }
        table.remove(&address).map_err(in_map(name))?;
    }
    Ok(())
}

/// Loads the program of a point.
pub(super) fn load_uprobe(ebpf: &mut Ebpf, program: &'static str) -> Result<(), SessionError> {
    let probe: &mut UProbe = program_mut(ebpf, program)?;
    load(probe.fd().is_ok(), || probe.load(), program)
}

/// Attaches one that stays as long as the session.
pub(super) fn attach_point(ebpf: &mut Ebpf, point: &Point, pid: NonZeroU32) -> Result<(), SessionError> {
    let Point { program, path, offset, place, .. } = point;
    let probe: &mut UProbe = program_mut(ebpf, program)?;
    let attached = probe.attach(*offset, path, UProbeScope::OneProcess(pid));
    attached.map(drop).map_err(|source| SessionError::Attach { place: place.clone(), source })
}

fn attach_link(ebpf: &mut Ebpf, point: &Point, pid: NonZeroU32) -> Result<UProbeLink, SessionError> {
    let Point { program, path, offset, place, .. } = point;
    let probe: &mut UProbe = program_mut(ebpf, program)?;
    let attached = probe.attach(*offset, path, UProbeScope::OneProcess(pid));
    attached.and_then(|id| probe.take_link(id)).map_err(|source| SessionError::Attach { place: place.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(program: &'static str, offset: u64) -> Point {
        Point { program, path: "/libc.so.6".into(), offset, place: program.to_owned(), emulated: true }
    }

    #[test]
    fn what_maps_memory_or_asks_for_carriers_stays() {
        for engine in [StackEngine::Kernel, StackEngine::Images] {
            for stays in ["mmap", "brk", "mapped", "carrier_requested"] {
                assert!(!is_on_blocks(engine.program(stays)), "{stays}");
            }
            for goes in ["malloc", "free", "allocated", "vm_allocated", "enif_alloc", "vm_free"] {
                assert!(is_on_blocks(engine.program(goes)), "{goes}");
            }
        }
    }

    #[test]
    fn the_busiest_function_leaves_first_and_its_entry_before_its_return() {
        let points = [
            point("allocated_walking", 1),
            point("allocated_walking", 2),
            point("free", 3),
            point("realloc", 1),
            point("malloc", 2),
        ];
        let hits = |program: &str| match program {
            "malloc" => 1000,
            "realloc" => 10,
            _ => 1010,
        };
        assert_eq!(leaving_order(&points, hits), [4, 1, 2, 3, 0]);
        assert_eq!(leaving_order(&points, |program| if program == "realloc" { 9 } else { 0 })[..2], [3, 0]);
    }
}
