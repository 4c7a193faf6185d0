//! Which nodes run on this host, and which of them is meant?

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    os::unix::fs::MetadataExt as _,
};

use procfs::{
    ProcError,
    process::{Process, all_processes},
};
use thiserror::Error;

use super::{
    node::Libc,
    process::{NEXT, Target, TargetError, is_beam},
};
use crate::recording::Node;

/// The nodes of this host.
#[derive(Debug, Default)]
pub struct Nodes {
    /// Those that can be looked at, by pid.
    pub targets: Vec<Target>,
    /// What kept us from looking at others.
    pub hidden: Hidden,
}

/// Processes that could not be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// How many.
    pub processes: usize,
    /// Those that have the name of a node.
    pub suspects: Vec<u32>,
}

/// Why no node was chosen.
#[derive(Debug, Error)]
pub enum FindError {
    /// The process that was asked for cannot be looked at.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is no list of processes.
    #[error("cannot list the processes in /proc")]
    Processes(#[source] ProcError),
    /// No node runs here.
    #[error("no Erlang node runs on this host{}{hidden}", asked_for(wanted.as_deref()))]
    NoNodes {
        /// What was asked for, if anything.
        wanted: Option<String>,
        /// What could not be looked at.
        hidden: Hidden,
    },
    /// None of the nodes is meant.
    #[error(
        "no node on this host has the pid, name or container id {wanted:?}; there are:{}{hidden}",
        list(candidates)
    )]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// The nodes that there are.
        candidates: Vec<Node>,
        /// What could not be looked at.
        hidden: Hidden,
    },
    /// Several nodes are meant.
    #[error("{}; name one by its pid:{}", several(wanted.as_deref()), list(candidates))]
    Ambiguous {
        /// What was asked for, if anything.
        wanted: Option<String>,
        /// The nodes that it fits.
        candidates: Vec<Node>,
    },
}

/// Fewest characters by which a container is known.
const SHORTEST_ID: usize = 6;

/// Lists the nodes.
pub fn nodes() -> Result<Nodes, FindError> {
    let mut nodes = Nodes::default();
    // Many processes run the same file.
    let mut known = HashMap::new();
    for process in all_processes().map_err(FindError::Processes)? {
        // A process that exits meanwhile is not on the list.
        let Ok(process) = process else { continue };
        match looks_like_node(&process, &mut known) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(Refused) => {
                nodes.hidden.add(&process);
                continue;
            }
        }
        match Target::open(process.pid().unsigned_abs()) {
            Ok(target) => nodes.targets.push(target),
            Err(TargetError::NotABeam { .. } | TargetError::NoSuchProcess { .. } | TargetError::Gone { .. }) => {}
            Err(_) => nodes.hidden.add(&process),
        }
    }
    nodes.targets.sort_by_key(Target::pid);
    Ok(nodes)
}

/// Opens the node that is meant: by pid, by its name with or without the host, by the beginning of its container's id,
/// or the only one there is.
pub fn resolve(wanted: Option<&str>) -> Result<Target, FindError> {
    if let Some(pid) = wanted.and_then(|wanted| wanted.parse().ok()) {
        match Target::open(pid) {
            // The id of a container may begin with digits alone.
            Err(TargetError::NoSuchProcess { .. }) if wanted.is_some_and(|wanted| wanted.len() >= SHORTEST_ID) => {}
            answer => return Ok(answer?),
        }
    }
    let Nodes { mut targets, hidden } = nodes()?;
    let names: Vec<_> = targets.iter().map(Target::node).collect();
    let index = choose(&names, wanted, hidden)?;
    Ok(targets.swap_remove(index))
}

/// Index of the node that is meant.
fn choose(nodes: &[&Node], wanted: Option<&str>, hidden: Hidden) -> Result<usize, FindError> {
    if nodes.is_empty() {
        return Err(FindError::NoNodes { wanted: wanted.map(str::to_owned), hidden });
    }
    let every = |fits: &dyn Fn(&Node) -> bool| -> Vec<usize> {
        nodes.iter().enumerate().filter(|(_, node)| fits(node)).map(|(index, _)| index).collect()
    };
    let fitting = match wanted {
        None => every(&|_| true),
        // A full name goes before the short name of another node.
        Some(wanted) => [
            every(&|node| node.name.as_deref() == Some(wanted)),
            every(&|node| node.name.as_deref().and_then(|name| name.split('@').next()) == Some(wanted)),
            every(&|node| {
                wanted.len() >= SHORTEST_ID && node.container.as_deref().is_some_and(|id| id.starts_with(wanted))
            }),
        ]
        .into_iter()
        .find(|fitting| !fitting.is_empty())
        .unwrap_or_default(),
    };
    let wanted = wanted.map(str::to_owned);
    match (fitting.as_slice(), wanted) {
        (&[index], _) => Ok(index),
        ([], wanted) => Err(FindError::NoMatch {
            wanted: wanted.unwrap_or_default(),
            candidates: nodes.iter().copied().cloned().collect(),
            hidden,
        }),
        (several, wanted) => Err(FindError::Ambiguous {
            wanted,
            candidates: several.iter().filter_map(|&index| nodes.get(index).copied().cloned()).collect(),
        }),
    }
}

fn asked_for(wanted: Option<&str>) -> String {
    wanted.map(|wanted| format!(", and so none with the pid, name or container id {wanted:?}")).unwrap_or_default()
}

/// The kernel does not let us look.
struct Refused;

/// Whether a process may be a node, by its executable.
fn looks_like_node(process: &Process, known: &mut HashMap<(u64, u64), bool>) -> Result<bool, Refused> {
    let file = match process.open_relative("exe") {
        Ok(file) => file,
        Err(ProcError::PermissionDenied(_)) => return Err(Refused),
        // Kernel threads have none, and neither has a process that has exited.
        Err(_) => return Ok(false),
    };
    // A loader that was called by its name hides what it runs; musl's is the C library itself.
    let is_loader = process.exe().is_ok_and(|exe| {
        let name = exe.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ld") || Libc::of(name) == Some(Libc::Musl)
    });
    let Ok(metadata) = file.metadata() else { return Ok(false) };
    let is_node = known.entry((metadata.dev(), metadata.ino())).or_insert_with(|| is_beam(file));
    Ok(*is_node || is_loader)
}

impl Hidden {
    fn add(&mut self, process: &Process) {
        self.processes = self.processes.saturating_add(1);
        if process.stat().is_ok_and(|stat| stat.comm.starts_with("beam")) {
            self.suspects.push(process.pid().unsigned_abs());
        }
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, suspects } = self;
        match (suspects.as_slice(), processes) {
            ([pid], _) => write!(f, "; process {pid} may be a node and cannot be looked at: {NEXT}"),
            ([first, ..], _) => {
                let count = suspects.len();
                write!(f, "; {count} processes may be nodes and cannot be looked at (the first is {first}): {NEXT}")
            }
            ([], 0) => Ok(()),
            ([], 1) => f.write_str("; 1 process cannot be looked at (root on the host may)"),
            ([], _) => write!(f, "; {processes} processes cannot be looked at (root on the host may)"),
        }
    }
}

fn several(wanted: Option<&str>) -> String {
    match wanted {
        Some(wanted) => format!("{wanted:?} fits several nodes"),
        None => "several nodes run on this host".to_owned(),
    }
}

fn list(nodes: &[Node]) -> String {
    nodes.iter().fold(String::new(), |mut list, node| {
        let Node { pid, name, container, .. } = node;
        let name = name.as_deref().unwrap_or("(no name)");
        let container = container.as_deref().and_then(|id| id.get(..12)).unwrap_or_default();
        // Writing to a String cannot fail.
        let _written = write!(list, "\n  {}", format!("{pid:<8} {name} {container}").trim_end());
        list
    })
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, str};

    use super::*;

    fn node(pid: u32, name: Option<&str>, container: Option<&str>) -> Node {
        Node {
            pid,
            name: name.map(str::to_owned),
            container: container.map(|digits| digits.repeat(64 / digits.len())),
            ..Node::default()
        }
    }

    fn choose_of_three(wanted: Option<&str>) -> Result<u32, String> {
        let nodes = [
            node(10, Some("shop@a"), Some("0f9c2b7d")),
            node(11, Some("shop@b"), None),
            node(12, None, Some("77777777")),
        ];
        let nodes: Vec<_> = nodes.iter().collect();
        let index = choose(&nodes, wanted, Hidden::default()).map_err(|error| error.to_string())?;
        Ok(nodes[index].pid)
    }

    #[test]
    fn by_name_or_container() {
        assert_eq!(choose_of_three(Some("shop@b")), Ok(11));
        assert_eq!(choose_of_three(Some("0f9c2b")), Ok(10));
        assert_eq!(choose_of_three(Some("777777")), Ok(12));
        assert_eq!(choose(&[&node(10, None, None)], None, Hidden::default()).ok(), Some(0));
    }

    #[test]
    fn what_is_not_clear_is_refused_with_the_choice() {
        assert_data_eq!(
            choose_of_three(Some("shop")).unwrap_err(),
            str![[r#"
"shop" fits several nodes; name one by its pid:
  10       shop@a 0f9c2b7d0f9c
  11       shop@b
"#]]
        );
        assert_data_eq!(
            choose_of_three(None).unwrap_err(),
            str![[r#"
several nodes run on this host; name one by its pid:
  10       shop@a 0f9c2b7d0f9c
  11       shop@b
  12       (no name) 777777777777
"#]]
        );
        assert_data_eq!(
            choose_of_three(Some("0f9c2")).unwrap_err(),
            str![[r#"
no node on this host has the pid, name or container id "0f9c2"; there are:
  10       shop@a 0f9c2b7d0f9c
  11       shop@b
  12       (no name) 777777777777
"#]]
        );
    }

    #[test]
    fn no_node_at_all() {
        let check = |processes, suspects: &[u32], expected: &str| {
            let hidden = Hidden { processes, suspects: suspects.to_vec() };
            let refused = choose(&[], Some("shop"), hidden).unwrap_err().to_string();
            let said = "no Erlang node runs on this host, and so none with the pid, name or container id \"shop\"";
            assert_eq!(refused.strip_prefix(said), Some(expected));
        };
        check(0, &[], "");
        check(
            9,
            &[7],
            "; process 7 may be a node and cannot be looked at: run beamscope as root, or as the user that runs the node",
        );
        check(
            9,
            &[7, 8],
            "; 2 processes may be nodes and cannot be looked at (the first is 7): run beamscope as root, or as the user \
             that runs the node",
        );
        check(9, &[], "; 9 processes cannot be looked at (root on the host may)");
        check(1, &[], "; 1 process cannot be looked at (root on the host may)");
    }
}
