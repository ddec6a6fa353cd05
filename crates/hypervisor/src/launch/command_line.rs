//! QEMU's command line as a list of options.

use super::options::Options;

/// Options without a value. Every other one takes the next argument.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-hax",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "tdf",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

/// Options whose values are words of the user, and never ids.
const FREE_TEXT: &[&str] = &[
    "append", "boot", "cpu", "fw_cfg", "initrd", "kernel", "m", "name", "smbios", "smp", "uuid",
];

/// A command line: the program and its options, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// The program.
    pub(super) program: String,
    /// Its options.
    pub(super) args: Vec<Arg>,
}

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arg {
    /// Its name without dashes.
    pub(super) name: String,
    /// Its value, if it takes one.
    pub(super) value: Option<String>,
}

impl CommandLine {
    /// Takes a command line apart. A bare argument is the first disk, as in QEMU.
    pub(super) fn parse(words: &[String]) -> Option<CommandLine> {
        let (program, words) = words.split_first()?;
        let mut args = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-') else {
                args.push(Arg::new("hda", word.clone()));
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            args.push(Arg {
                name: if name == "M" { "machine" } else { name }.to_owned(),
                value: match FLAGS.contains(&name) {
                    true => None,
                    false => words.next().cloned(),
                },
            });
        }
        Some(CommandLine {
            program: program.clone(),
            args,
        })
    }

    /// The words to run.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = vec![self.program.clone()];
        for arg in &self.args {
            words.push(format!("-{}", arg.name));
            words.extend(arg.value.clone());
        }
        words
    }

    /// Whether there is such an option.
    pub(super) fn has(&self, name: &str) -> bool {
        self.args.iter().any(|arg| arg.name == name)
    }

    /// The options of a name, taken apart, with their positions.
    pub(super) fn all(&self, name: &str) -> Vec<(usize, Options)> {
        self.args
            .iter()
            .enumerate()
            .filter(|(_, arg)| arg.name == name)
            .map(|(index, arg)| (index, arg.options()))
            .collect()
    }

    /// Adds an option at the end.
    pub(super) fn push(&mut self, name: &str, value: impl Into<String>) {
        self.args.push(Arg::new(name, value));
    }

    /// Removes the options at these positions.
    pub(super) fn remove_at(&mut self, positions: &[usize]) {
        let mut index = 0;
        self.args.retain(|_| {
            index += 1;
            !positions.contains(&(index - 1))
        });
    }

    /// Whether another option than that at `except` names `id` as one of its values.
    pub(super) fn refers_to(&self, id: &str, except: usize) -> bool {
        self.args.iter().enumerate().any(|(index, arg)| {
            index != except && !FREE_TEXT.contains(&arg.name.as_str()) && arg.refers_to(id)
        })
    }
}

impl Arg {
    /// An option with a value.
    pub(super) fn new(name: &str, value: impl Into<String>) -> Arg {
        Arg {
            name: name.to_owned(),
            value: Some(value.into()),
        }
    }

    /// Its value, taken apart.
    pub(super) fn options(&self) -> Options {
        Options::parse(
            self.value.as_deref().unwrap_or_default(),
            implied_key(&self.name),
        )
    }

    fn refers_to(&self, id: &str) -> bool {
        let own = ["id", "node-name", "driver", "serial", "wwn", "name"];
        let Some(value) = &self.value else {
            return false;
        };
        value.strip_prefix("chardev:") == Some(id)
            || (self.options().entries().iter())
                .any(|(key, value)| value == id && !own.contains(&key.as_str()))
    }

    /// As it stands on the command line.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Some(value) => format!("-{} {value}", self.name),
            None => format!("-{}", self.name),
        }
    }
}

/// The key of a first field that has none.
fn implied_key(name: &str) -> &'static str {
    match name {
        "drive" | "pflash" => "file",
        "device" | "blockdev" | "audiodev" | "audio" => "driver",
        "netdev" | "net" | "nic" | "tpmdev" | "display" | "machine" => "type",
        "chardev" => "backend",
        "object" => "qom-type",
        "fsdev" | "virtfs" => "fsdriver",
        "accel" => "accel",
        "name" => "guest",
        "mon" => "chardev",
        "incoming" => "uri",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_printed_as_it_was() {
        let line = words("qemu -enable-kvm -m 512 -S -drive file=a,if=virtio -nographic -x-new y");
        assert_eq!(CommandLine::parse(&line).unwrap().words(), line);
    }

    #[test]
    fn two_dashes_m_and_a_bare_image_are_understood() {
        let line = CommandLine::parse(&words("qemu --M pc disk.img -snapshot")).unwrap();
        assert_eq!(
            line.words(),
            words("qemu -machine pc -hda disk.img -snapshot")
        );
        assert_eq!(CommandLine::parse(&[]), None);
        let cut = CommandLine::parse(&words("qemu -m")).unwrap();
        assert_eq!(cut.words(), words("qemu -m"));
    }
}
