//! Passwords of displays are in no backup. A guest that has some keeps them when its definition is
//! changed.

use crate::xml::Element;

/// The definition `then` with the passwords that the displays of `now` have; `None` where they have
/// none, or what is given is no XML.
#[must_use]
pub fn keep_passwords(then: &str, now: &str) -> Option<String> {
    let now = Element::parse(now).ok()?;
    let mut then = Element::parse(then).ok()?;
    let devices = now.child("devices")?;
    let mut kept = false;
    for (number, display) in displays(&mut then).enumerate() {
        let Some(old) = devices.all("graphics").nth(number) else {
            break;
        };
        if old.get("type") != display.get("type") {
            continue;
        }
        for key in ["passwd", "passwdValidTo"] {
            if let Some(value) = old.get(key) {
                display.set(key, value);
                kept = true;
            }
        }
    }
    if !kept {
        return None;
    }
    then.to_xml().ok()
}

fn displays(domain: &mut Element) -> impl Iterator<Item = &mut Element> {
    let devices = domain.children_mut().filter(|one| one.name == "devices");
    devices
        .flat_map(Element::children_mut)
        .filter(|device| device.name == "graphics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_display_keeps_its_own() {
        let xml = |first: &str, second: &str| {
            format!(
                "<domain><devices><graphics type=\"spice\"{first}/>\
                 <graphics type=\"vnc\"{second}/></devices></domain>"
            )
        };
        let secret = " passwd=\"hunter2\"";
        assert_eq!(
            keep_passwords(&xml("", " port=\"1\""), &xml("", secret)),
            Some(xml("", &format!(" port=\"1\"{secret}")))
        );
        assert_eq!(keep_passwords(&xml("", ""), &xml("", "")), None);
        let one = "<domain><devices><graphics type=\"vnc\"/></devices></domain>";
        assert_eq!(keep_passwords(one, &xml(secret, "")), None);
    }
}
