//! What do a node's command line, paths and control groups say about it?

use std::path::Path;

/// The node's name as `-sname` or `-name` gives it, with the host that `-sname` leaves out where `host` is known.
///
/// `-sname` goes first when both are given, and the first of several, as in `net_kernel` (OTP 25,
/// `erl_distribution:start_link/0`). Everything behind `-extra` is the application's.
pub fn name(arguments: &[String], host: Option<&str>) -> Option<String> {
    let own = arguments.split(|argument| argument == "-extra").next()?;
    if let Some(short) = flag(own, "-sname") {
        let host = host.and_then(|host| host.split('.').next()).filter(|host| !host.is_empty());
        return Some(match host {
            Some(host) if !short.contains('@') => format!("{short}@{host}"),
            _ => short.to_owned(),
        });
    }
    flag(own, "-name").map(str::to_owned)
}

/// The value of the first `name value` in `arguments`.
pub fn flag<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == name)?;
    let value = arguments.get(at.checked_add(1)?)?;
    // `-sname undefined` asks the first node that connects for a name.
    (!value.starts_with('-') && value != "undefined").then_some(value)
}

/// The arguments in a `vm.args` file: separated by space, `#` comments out the rest of a line, quotes keep space.
pub fn arguments_in_file(text: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    for line in text.lines() {
        let mut word: Option<String> = None;
        let mut quote = None;
        for letter in line.chars() {
            match (quote, letter) {
                (None, '#') if word.is_none() => break,
                (None, '"' | '\'') => {
                    quote = Some(letter);
                    word.get_or_insert_default();
                }
                (Some(open), _) if open == letter => quote = None,
                (None, _) if letter.is_whitespace() => arguments.extend(word.take()),
                _ => word.get_or_insert_default().push(letter),
            }
        }
        arguments.extend(word);
    }
    arguments
}

/// The id of the container whose control group is among `groups`: the last 64 hexadecimal digits on their own, which
/// docker, containerd, podman and CRI-O all put into the path.
pub fn container<'a>(groups: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let id = |group: &'a str| {
        group
            .rsplit(|letter: char| !letter.is_ascii_alphanumeric())
            .find(|word| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    groups.into_iter().find_map(id).map(str::to_owned)
}

/// `13.1.5` of a path with a folder `erts-13.1.5`.
pub fn erts_version(path: &str) -> Option<String> {
    let folders = Path::new(path).iter().filter_map(|folder| folder.to_str()?.strip_prefix("erts-"));
    folders.last().and_then(version)
}

/// The OTP release that has an emulator of this version. Both count up by one each year since OTP 23 had version 11
/// (verified up to OTP 29 and version 17); older ones do not follow it.
pub fn otp_release(erts_version: &str) -> Option<String> {
    let major: u32 = erts_version.split('.').next()?.parse().ok()?;
    (11..100).contains(&major).then(|| major.saturating_add(12).to_string())
}

/// The release in `releases/start_erl.data`, where it is one of OTP and not of an application: `13.1.5 25`.
pub fn start_release(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let (erts_version, release) = (words.next()?, words.next()?);
    (otp_release(erts_version)? == release).then(|| release.to_owned())
}

/// The first line of a text, where it is a version number.
pub fn version(text: &str) -> Option<String> {
    let line = text.lines().next()?.trim();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-+_".contains(&byte);
    let is_version = line.starts_with(|first: char| first.is_ascii_digit()) && line.len() < 64;
    (is_version && line.bytes().all(allowed)).then(|| line.to_owned())
}

/// An implementation of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    /// The GNU C library.
    Glibc,
    /// musl.
    Musl,
}

impl Libc {
    /// Which of them a mapped file is, by its name.
    pub fn of(file_name: &str) -> Option<Self> {
        let starts = |names: &[&str]| names.iter().any(|name| file_name.starts_with(name));
        if file_name == "libc.so.6" || starts(&["libc-2."]) {
            Some(Self::Glibc)
        } else if file_name == "libc.so" || starts(&["ld-musl-", "libc.musl-"]) {
            // The loader is the library; `ld-musl-x86_64.so.1` is a link to `libc.so` on Debian.
            Some(Self::Musl)
        } else {
            None
        }
    }
}

/// `2.36` of the banner in glibc's `libc.so.6`.
pub fn glibc_version(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"GNU C Library (";
    let start = bytes.windows(BANNER.len()).position(|window| window == BANNER)?;
    let banner = bytes.get(start..)?.get(..256)?;
    let line = String::from_utf8_lossy(banner);
    line.lines()
        .next()?
        .split_once(" version ")
        .and_then(|(_, rest)| version(rest.split('.').take(2).collect::<Vec<_>>().join(".").as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn names_on_the_command_line() {
        let check = |line, expected: Option<&str>| {
            assert_eq!(name(&words(line), Some("host.example.org")).as_deref(), expected, "{line}");
        };
        check("beam.smp -- -root /r -- -name shop@10.0.0.7 -setcookie x", Some("shop@10.0.0.7"));
        check("beam.smp -- -sname shop", Some("shop@host"));
        check("beam.smp -- -sname shop@other", Some("shop@other"));
        check("beam.smp -- -name a@b -sname c", Some("c@host"));
        check("beam.smp -- -sname undefined", None);
        check("beam.smp -- -sname", None);
        check("beam.smp -- -name -noshell", None);
        check("beam.smp -- -noshell -extra -name x@y", None);
        assert_eq!(name(&words("-sname shop"), None).as_deref(), Some("shop"));
    }

    #[test]
    fn an_arguments_file() {
        let text =
            "## Name of the node\n-name shop@10.0.0.7 # not this\n\n+Q 65536\n-config \"/etc/my app\" -x 'a b'c#d\n";
        assert_eq!(
            arguments_in_file(text),
            ["-name", "shop@10.0.0.7", "+Q", "65536", "-config", "/etc/my app", "-x", "a bc#d"]
        );
    }

    #[test]
    fn containers_of_each_run_time() {
        let id = "0f9c2b7d".repeat(8);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/besteffort/pod6a6a-11/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/crio-{id}.scope"),
        ] {
            assert_eq!(container(["/", &path]).as_deref(), Some(id.as_str()), "{path}");
        }
        assert_eq!(container(["/user.slice/user-0.slice/session-1.scope", ""]), None);
        assert_eq!(container([format!("/docker/{id}0").as_str()]), None);
    }

    #[test]
    fn versions_of_the_emulator_and_of_otp() {
        assert_eq!(erts_version("/usr/lib/erlang/erts-13.1.5/bin/beam.smp").as_deref(), Some("13.1.5"));
        assert_eq!(erts_version("/usr/lib/erlang/bin"), None);
        assert_eq!(otp_release("17.1.1").as_deref(), Some("29"));
        assert_eq!(otp_release("11.1.8").as_deref(), Some("23"));
        assert_eq!(otp_release("10.7"), None);
        assert_eq!(start_release("13.1.5 25\n").as_deref(), Some("25"));
        assert_eq!(start_release("13.1.5 0.1.0"), None);
        assert_eq!(version("25.2.3\n").as_deref(), Some("25.2.3"));
        assert_eq!(version("; rm -rf"), None);
    }

    #[test]
    fn c_libraries_by_name() {
        assert_eq!(Libc::of("libc.so.6"), Some(Libc::Glibc));
        assert_eq!(Libc::of("libc-2.31.so"), Some(Libc::Glibc));
        assert_eq!(Libc::of("ld-musl-x86_64.so.1"), Some(Libc::Musl));
        assert_eq!(Libc::of("libc.so"), Some(Libc::Musl));
        assert_eq!(Libc::of("libcrypto.so.3"), None);
    }

    #[test]
    fn version_of_glibc() {
        let check = |banner: &str, expected| {
            let bytes = [b"\0\0".as_slice(), banner.as_bytes(), &[b'\n'; 300]].concat();
            assert_eq!(glibc_version(&bytes).as_deref(), expected, "{banner}");
        };
        check("GNU C Library (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36.", Some("2.36"));
        check("GNU C Library (GNU libc) development release version 2.42.9000.", Some("2.42"));
        check("GNU C Library (GNU libc)", None);
    }
}
