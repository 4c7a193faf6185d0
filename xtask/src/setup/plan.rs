//! Given this machine and what it lacks: go on, install, or refuse?

use std::collections::BTreeSet;

use super::need::{Job, Need};

/// What the decision depends on.
#[derive(Debug)]
pub(super) struct Machine {
    family: Family,
    pub(super) uid: u32,
}

/// Distributions that share package names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    Fedora,
    Arch,
    Alpine,
    Suse,
    Unknown,
}

/// What to do before a task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    Ready,
    /// Install these packages by apt-get.
    Install(Vec<&'static str>),
    /// Tell the user this, and do nothing.
    Refuse(String),
}

pub(super) fn plan(job: Job, machine: &Machine, missing: &[Need]) -> Plan {
    let missing_root = job.needs_root().filter(|_| machine.uid != 0);
    if missing.is_empty() && missing_root.is_none() {
        return Plan::Ready;
    }
    if machine.can_install() {
        return Plan::Install(packages(machine, missing));
    }
    Plan::Refuse(refusal(job, machine, missing, missing_root))
}

/// The packages of what is missing, each once, in the order of the needs.
pub(super) fn packages(machine: &Machine, missing: &[Need]) -> Vec<&'static str> {
    let names = |need: &Need| match machine.family {
        Family::Debian | Family::Unknown => need.packages.debian,
        Family::Fedora => need.packages.fedora,
        Family::Arch => need.packages.arch,
        Family::Alpine => need.packages.alpine,
        Family::Suse => need.packages.suse,
    };
    let mut seen = BTreeSet::new();
    missing.iter().flat_map(|need| names(need).split(' ')).filter(|name| seen.insert(*name)).collect()
}

fn refusal(job: Job, machine: &Machine, missing: &[Need], missing_root: Option<&str>) -> String {
    let mut things: Vec<_> = missing.iter().map(|need| format!("  - {}", need.what)).collect();
    if let Some(reason) = missing_root {
        things.push(format!("  - root: {reason}"));
    }
    let mut commands = Vec::new();
    let sudo = if machine.uid == 0 { "" } else { "sudo " };
    let names = packages(machine, missing).join(" ");
    let install = match machine.family {
        Family::Debian => Some("apt-get install -y"),
        Family::Fedora => Some("dnf install -y"),
        Family::Arch => Some("pacman -S --needed"),
        Family::Alpine => Some("apk add"),
        Family::Suse => Some("zypper install -y"),
        Family::Unknown => None,
    };
    if !missing.is_empty() {
        commands.push(match install {
            Some(install) => format!("  {sudo}{install} {names}"),
            None => format!("  install what your distribution calls Debian's packages {names}"),
        });
    }
    let name = job.name();
    commands.push(if missing_root.is_some() {
        format!("  sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask {name}")
    } else {
        format!("  cargo xtask {name}")
    });
    format!(
        "cargo xtask {name} needs what is missing here:\n{}\nTo get it:\n{}",
        things.join("\n"),
        commands.join("\n")
    )
}

impl Machine {
    /// `os_release` is the text of /etc/os-release, empty where there is none.
    pub(super) fn new(os_release: &str, uid: u32) -> Self {
        Self { family: Family::of(os_release), uid }
    }

    /// Whether a task may install packages here by itself.
    pub(super) fn can_install(&self) -> bool {
        self.family == Family::Debian && self.uid == 0
    }
}

impl Family {
    fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\''])
        };
        let ids = [value("ID"), value("ID_LIKE")];
        let ids = ids.iter().flat_map(|ids| ids.split_whitespace());
        ids.into_iter().find_map(Self::by_id).unwrap_or(Self::Unknown)
    }

    fn by_id(id: &str) -> Option<Self> {
        match id {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            "arch" => Some(Self::Arch),
            "alpine" => Some(Self::Alpine),
            "suse" | "opensuse" | "sles" => Some(Self::Suse),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::need::{Packages, Presence},
        *,
    };

    const DEBIAN: &str = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n";
    const MINT: &str = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
    const FEDORA: &str = "ID=fedora\nVERSION_ID=42\n";
    const NIXOS: &str = "ID=nixos\n";

    fn need(what: &'static str, packages: Packages) -> Need {
        Need { what, presence: Presence::Command("x"), packages }
    }

    fn erl() -> Need {
        need("Erlang (erl)", Packages { debian: "erlang-base", ..Packages::everywhere("erlang") })
    }

    fn header() -> Need {
        need("erl_nif.h", Packages { debian: "erlang-dev", ..Packages::everywhere("erlang") })
    }

    fn check(job: Job, os_release: &str, uid: u32, missing: &[Need], expected: &Plan) {
        assert_eq!(&plan(job, &Machine::new(os_release, uid), missing), expected);
    }

    #[test]
    fn nothing_is_run_when_all_is_there() {
        for os_release in [DEBIAN, MINT, FEDORA, NIXOS, ""] {
            check(Job::Demo, os_release, 0, &[], &Plan::Ready);
            check(Job::Fixtures, os_release, 1000, &[], &Plan::Ready);
        }
    }

    #[test]
    fn debian_and_its_children_install_as_root() {
        for os_release in [DEBIAN, MINT] {
            let expected = Plan::Install(vec!["erlang-base", "erlang-dev"]);
            check(Job::Demo, os_release, 0, &[erl(), header()], &expected);
        }
    }

    #[test]
    fn a_package_is_named_once() {
        let expected = Plan::Install(vec!["erlang-base"]);
        check(Job::Demo, DEBIAN, 0, &[erl(), erl()], &expected);
    }

    #[test]
    fn without_root_all_of_it_is_said_at_once() {
        let expected = "cargo xtask demo needs what is missing here:\n  \
            - Erlang (erl)\n  - erl_nif.h\n  - root: uprobes and BPF programs need it\nTo get it:\n  \
            sudo apt-get install -y erlang-base erlang-dev\n  \
            sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask demo";
        check(Job::Demo, DEBIAN, 1000, &[erl(), header()], &Plan::Refuse(expected.to_owned()));
    }

    #[test]
    fn root_alone_can_be_missing() {
        let expected = "cargo xtask test needs what is missing here:\n  - root: uprobes and BPF programs need it\n\
            To get it:\n  sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask test";
        check(Job::Test, DEBIAN, 1000, &[], &Plan::Refuse(expected.to_owned()));
    }

    #[test]
    fn other_distributions_get_their_own_command() {
        let expected = "cargo xtask demo needs what is missing here:\n  - Erlang (erl)\n  - erl_nif.h\nTo get it:\n  \
            dnf install -y erlang\n  cargo xtask demo";
        check(Job::Demo, FEDORA, 0, &[erl(), header()], &Plan::Refuse(expected.to_owned()));
    }

    #[test]
    fn an_unknown_distribution_gets_debians_names() {
        let Plan::Refuse(message) = plan(Job::Demo, &Machine::new(NIXOS, 0), &[erl()]) else { panic!("not refused") };
        assert!(message.contains("what your distribution calls Debian's packages erlang-base"), "{message}");
    }
}
