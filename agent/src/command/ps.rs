//! Which nodes run on this host?

use anyhow::Context as _;
use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use crate::{
    recording::{Emulator, Node},
    target::{
        find::{self, Hidden},
        process::Target,
    },
};

/// The list of nodes.
#[derive(Clone, Debug, Serialize)]
struct Listing {
    schema: &'static str,
    nodes: Vec<Row>,
    /// Processes that could not be looked at.
    unreadable: usize,
    #[serde(skip)]
    hidden: Hidden,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    node: Node,
    rss: Option<u64>,
    command: String,
}

/// Letters of a command line that fit into the table.
const COMMAND_LETTERS: usize = 60;

/// Runs the command: a table, or JSON.
pub(super) fn ps(json: bool) -> anyhow::Result<String> {
    let listing = list()?;
    if json { listing.json() } else { Ok(listing.table()) }
}

/// Looks for the nodes.
fn list() -> anyhow::Result<Listing> {
    let found = find::nodes()?;
    let row = |target: &Target| Row {
        node: target.node().clone(),
        rss: target.snapshot(0.0).ok().map(|snapshot| snapshot.rss),
        command: command(target.arguments()),
    };
    let nodes = found.targets.iter().map(row).collect();
    Ok(Listing { schema: "beamscope.ps/1", nodes, unreadable: found.hidden.processes, hidden: found.hidden })
}

/// A command line without the cookie, which lets its owner run code on the node.
fn command(mut arguments: Vec<String>) -> String {
    let mut hide = false;
    for argument in &mut arguments {
        if std::mem::replace(&mut hide, argument == "-setcookie") {
            "***".clone_into(argument);
        }
    }
    arguments.join(" ")
}

impl Listing {
    fn json(&self) -> anyhow::Result<String> {
        let text = serde_json::to_string_pretty(self).context("cannot write the list of nodes as JSON")?;
        Ok(text + "\n")
    }

    fn table(&self) -> String {
        let hidden = self.hidden.to_string();
        if self.nodes.is_empty() {
            return format!("no Erlang node runs on this host{hidden}\n");
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["PID", "NODE", "OTP", "EMULATOR", "RSS", "CONTAINER", "COMMAND"]);
        for Row { node, rss, command } in &self.nodes {
            let or_dash = |value: Option<&str>| value.unwrap_or("-").to_owned();
            let emulator = match node.emulator {
                Some(Emulator::Jit) => "jit",
                Some(Emulator::Emu) => "emu",
                None => "-",
            };
            table.add_row([
                node.pid.to_string(),
                or_dash(node.name.as_deref()),
                or_dash(node.otp_release.as_deref()),
                emulator.to_owned(),
                rss.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1} MiB", bytes as f64 / 1_048_576.0)),
                or_dash(node.container.as_deref().and_then(|id| id.get(..12))),
                shortened(command),
            ]);
        }
        let note = hidden.strip_prefix("; ").map(|note| format!("\n{note}\n")).unwrap_or_default();
        format!("{}\n{note}", table.trim_fmt().lines().map(str::trim_start).collect::<Vec<_>>().join("\n"))
    }
}

fn shortened(command: &str) -> String {
    if command.chars().count() <= COMMAND_LETTERS {
        return command.to_owned();
    }
    command.chars().take(COMMAND_LETTERS.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, str};

    use super::*;

    fn listing() -> Listing {
        let shop = Node {
            pid: 4242,
            name: Some("shop@10.0.0.7".to_owned()),
            otp_release: Some("27".to_owned()),
            erts_version: Some("15.2.7".to_owned()),
            emulator: Some(Emulator::Jit),
            arch: "x86_64".to_owned(),
            libc: Some("musl".to_owned()),
            kernel: "6.1.0".to_owned(),
            container: Some("0f9c2b7d".repeat(8)),
        };
        let nameless = Node { pid: 17, emulator: Some(Emulator::Emu), ..Node::default() };
        let line = "/app/erts-15.2.7/bin/beam.smp -- -root /app -name shop@10.0.0.7 -setcookie";
        let words = line.split(' ').chain(["secret", "-noshell"]).map(str::to_owned).collect();
        Listing {
            schema: "beamscope.ps/1",
            nodes: vec![
                Row { node: nameless, rss: None, command: "beam.smp".to_owned() },
                Row { node: shop, rss: Some(180_000_000), command: command(words) },
            ],
            unreadable: 3,
            hidden: Hidden { processes: 3, suspects: vec![99] },
        }
    }

    #[test]
    fn table() {
        assert_data_eq!(
            listing().table(),
            str![[r#"
PID   NODE           OTP  EMULATOR  RSS        CONTAINER     COMMAND
17    -              -    emu       -          -             beam.smp
4242  shop@10.0.0.7  27   jit       171.7 MiB  0f9c2b7d0f9c  /app/erts-15.2.7/bin/beam.smp -- -root /app -name shop@10.0…

1 that may be nodes cannot be looked at (pid 99): run beamscope as root, or as the user that runs the node

"#]]
        );
    }

    #[test]
    fn json() {
        assert_data_eq!(
            listing().json().unwrap(),
            str![[r#"
{
  "schema": "beamscope.ps/1",
  "nodes": [
    {
      "pid": 17,
      "name": null,
      "otp_release": null,
      "erts_version": null,
      "emulator": "emu",
      "arch": "",
      "libc": null,
      "kernel": "",
      "container": null,
      "rss": null,
      "command": "beam.smp"
    },
    {
      "pid": 4242,
      "name": "shop@10.0.0.7",
      "otp_release": "27",
      "erts_version": "15.2.7",
      "emulator": "jit",
      "arch": "x86_64",
      "libc": "musl",
      "kernel": "6.1.0",
      "container": "0f9c2b7d0f9c2b7d0f9c2b7d0f9c2b7d0f9c2b7d0f9c2b7d0f9c2b7d0f9c2b7d",
      "rss": 180000000,
      "command": "/app/erts-15.2.7/bin/beam.smp -- -root /app -name shop@10.0.0.7 -setcookie *** -noshell"
    }
  ],
  "unreadable": 3
}

"#]]
        );
    }

    #[test]
    fn no_nodes() {
        let none = Listing { nodes: Vec::new(), ..listing() };
        assert_data_eq!(
            none.table(),
            str![[r#"
no Erlang node runs on this host; 1 that may be nodes cannot be looked at (pid 99): run beamscope as root, or as the user that runs the node

"#]]
        );
    }

    #[test]
    fn the_cookie_is_not_shown() {
        assert!(!listing().json().unwrap().contains("secret"));
    }
}
