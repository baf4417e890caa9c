//! What a process is called, for people.

/// Programs that run another one, which is the one to name.
const INTERPRETERS: [&str; 7] = ["python", "node", "ruby", "perl", "java", "bun", "deno"];
/// Options of these interpreters that take a value of their own.
const VALUED: [&str; 6] = ["-X", "-W", "-r", "-cp", "-classpath", "--require"];
const LONGEST_NAME: usize = 64;

/// The name of a process: its program's file name, or for an interpreter the module or script
/// that it runs (`python3 -m vllm.entrypoints.openai.api_server` is named by the module,
/// `python3 /usr/bin/vllm serve` is `vllm`), else the kernel's name for it.
pub(super) fn program_name(arguments: &[&str], comm: &str) -> String {
    // A script's `#!/usr/bin/env python3`, seen before env has given way to it.
    let arguments = match arguments {
        [first, rest @ ..] if file_name(first) == "env" && !rest.is_empty() => {
            let options = |text: &&&str| text.starts_with('-') || text.contains('=');
            rest.get(rest.iter().take_while(options).count()..)
                .filter(|rest| !rest.is_empty())
                .unwrap_or(arguments)
        }
        _ => arguments,
    };
    let name = arguments.first().map_or(comm, |first| {
        // Programs that set their own title write a sentence there.
        let program = file_name(first.split([' ', ':']).next().unwrap_or(first));
        let interpreter = INTERPRETERS.iter().any(|known| {
            program.strip_prefix(known).is_some_and(|version| {
                version
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'.')
            })
        });
        if interpreter {
            script(arguments).unwrap_or(program)
        } else {
            program
        }
    });
    let shown: String = name.chars().filter(|letter| !letter.is_control()).collect();
    let mut end = shown.len().min(LONGEST_NAME);
    while !shown.is_char_boundary(end) {
        end -= 1;
    }
    match shown.get(..end) {
        None | Some("") => "process".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn script<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut rest = arguments.iter().skip(1).copied();
    while let Some(argument) = rest.next() {
        match argument {
            "-m" | "-jar" => return rest.next().map(file_stem),
            "-c" | "-e" => return None,
            option if VALUED.contains(&option) => {
                rest.next();
            }
            option if option.starts_with('-') => {}
            script => return Some(file_stem(script)),
        }
    }
    None
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The file's name without the ending of a script.
fn file_stem(path: &str) -> &str {
    let name = file_name(path);
    [".py", ".js", ".mjs", ".ts", ".rb", ".pl", ".jar"]
        .into_iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_named_by_what_they_run() {
        for (arguments, name) in [
            (
                vec!["/usr/bin/python3", "-m", "http.server", "8000"],
                "http.server",
            ),
            (
                vec!["python3.12", "-u", "/usr/local/bin/vllm", "serve"],
                "vllm",
            ),
            (vec!["python3", "-X", "dev", "app.py"], "app"),
            (vec!["node", "--require", "x", "/srv/server.js"], "server"),
            (vec!["java", "-cp", "a:b", "-jar", "/opt/app.jar"], "app"),
            (vec!["python3", "-c", "print()"], "python3"),
            (
                vec!["/opt/llama/llama-server", "-m", "model.gguf"],
                "llama-server",
            ),
            (vec!["VLLM::EngineCore"], "VLLM"),
            (vec!["gunicorn: master [app:app]"], "gunicorn"),
            (vec!["pythonista", "x"], "pythonista"),
            (
                vec!["/usr/bin/env", "-S", "A=1", "python3", "/bin/vllm"],
                "vllm",
            ),
            (vec!["env"], "env"),
            (vec![], "comm"),
        ] {
            assert_eq!(program_name(&arguments, "comm"), name, "{arguments:?}");
        }
        assert_eq!(program_name(&["\u{1b}[2J\n"], "x"), "[2J");
        assert_eq!(program_name(&["é".repeat(100).as_str()], "x").len(), 64);
        assert_eq!(program_name(&["/"], "x"), "process");
    }
}
