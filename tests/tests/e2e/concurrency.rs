//! Many starts at once, and the end of servers: nobody waits for a lock, nothing is left behind, nothing goes too early.

use std::time::{Duration, Instant};

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::image::Recipe;
use cista_tests::process;
use rustix::process::Signal;

use super::start::busybox;

const PATIENCE: Duration = Duration::from_secs(60);

/// How many starts.
const MANY: usize = 64;

/// All of them run at the same time: none waits for another to end.
fn sixty_four_starts_of_an_image(environment: &TestEnvironment<'_>) -> TestResult {
    let mut running = Vec::new();
    for number in 0..MANY {
        let script = format!("echo ready; read line; cat /etc/issue; echo {number}; exit {number}");
        running.push(
            busybox(environment, &[], &["sh", "-c", &script])?
                .stdin_pipe()
                .spawn()?,
        );
    }
    for container in &running {
        container.wait_for_stdout("ready", PATIENCE)?;
    }
    for (number, mut container) in running.into_iter().enumerate() {
        container.write(b"go\n")?;
        let outcome = container.wait()?;
        assert_eq!(
            outcome.code(),
            i32::try_from(number).ok(),
            "{}",
            outcome.error_text()
        );
        let expected = format!("ready\na test image of cista\n{number}");
        assert_eq!(outcome.text(), expected);
        assert_eq!(outcome.error_text(), "");
    }
    Ok(())
}

/// One named container, started many times at once: readers beside a writer, and a tree by several writers.
fn many_starts_of_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    for (name, create, writers) in [("layered", &[][..], 1), ("tree", &["--unpack"], 8)] {
        environment
            .cista(["create", "-n", name])
            .args(create)
            .arg(&image)
            .check()?;
        let mut running = Vec::new();
        for number in 0..16 {
            let options: &[&str] = if number < writers { &["-w"] } else { &[] };
            let write = format!("echo {number} >/home/{number}");
            let script = format!(
                "[ {number} -ge {writers} ] || {write}; echo ready; read line; cat /etc/issue"
            );
            running.push(
                environment
                    .cista(["start"])
                    .args(options)
                    .args([name, "sh", "-c", &script])
                    .stdin_pipe()
                    .spawn()?,
            );
        }
        for container in &running {
            container.wait_for_stdout("ready", PATIENCE)?;
        }
        let table = environment.cista(["list", "-f"]).text()?;
        let lines = table.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(lines, 16, "{table}");
        for mut container in running {
            container.write(b"go\n")?;
            let outcome = container.wait()?;
            assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
            assert!(outcome.text().ends_with("a test image of cista"));
        }
        let script = "cat /home/* | sort -n | tr '\\n' ' '";
        let kept = environment
            .cista(["start", name, "sh", "-c", script])
            .text()?;
        let expected: Vec<String> = (0..writers).map(|number| number.to_string()).collect();
        assert_eq!(kept, expected.join(" "));
        environment.cista(["remove", "-f", name]).check()?;
    }
    Ok(())
}

/// Every process of a container is killed at once, in the middle of its reading: the server goes, and does so soon.
fn the_server_goes_when_all_are_killed(environment: &TestEnvironment<'_>) -> TestResult {
    for round in 0..5 {
        let script = "while :; do cat /bin/busybox /etc/issue; done >/dev/null & while :; do find / -xdev >/dev/null; done & echo ready; wait";
        let container = busybox(environment, &[], &["sh", "-c", script])?
            .own_group()
            .spawn()?;
        container.wait_for_stdout("ready", PATIENCE)?;
        std::thread::sleep(Duration::from_millis(20 * round));
        let group = format!("-{}", container.pid());
        environment
            .program("kill")
            .args(["-s", "KILL", "--", &group])
            .check()?;
        let outcome = container.wait()?;
        assert_eq!(outcome.signal(), Some(Signal::KILL.as_raw()));
        // 100 ms are the aim; a busy machine gets ten times that.
        let end = process::wait_until_none_executes(&environment.program_path(), PATIENCE);
        assert!(
            end.is_some_and(|after| after < Duration::from_secs(1)),
            "{end:?}"
        );
    }
    Ok(())
}

/// A process that has left everything behind - parent, session, group, working directory - still reads from the image.
fn the_server_never_goes_before(environment: &TestEnvironment<'_>) -> TestResult {
    let script = "setsid sh -c 'exec </dev/null 2>/dev/null; cd /tmp; echo left; left=1000; while [ ! -e /tmp/stop ] && [ $((left -= 1)) -gt 0 ]; do cat /etc/issue /bin/busybox >/dev/null || { echo lost; exit; }; sleep 0.02; done; echo stopped' & sleep 0.1; echo parent";
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "left"])
        .arg(image)
        .check()?;
    let container = environment
        .cista(["start", "left", "sh", "-c", script])
        .spawn()?;
    let pid = container.pid();
    container.wait_for_stdout("parent", PATIENCE)?;
    let begin = Instant::now();
    while process::is_alive(pid) {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Long after: the orphan is still served, and joined by its container's name.
    std::thread::sleep(Duration::from_millis(700));
    assert!(
        !process::executing(&environment.program_path()).is_empty(),
        "the server is gone"
    );
    environment
        .cista(["exec", "left", "touch", "/tmp/stop"])
        .check()?;
    let outcome = container.wait()?;
    assert!(outcome.text().ends_with("stopped"), "{}", outcome.text());
    let end = process::wait_until_none_executes(&environment.program_path(), PATIENCE);
    assert!(
        end.is_some_and(|after| after < Duration::from_secs(1)),
        "{end:?}"
    );
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "concurrency::sixty_four_starts_of_an_image",
        Who::Both,
        sixty_four_starts_of_an_image,
    ),
    Case::container(
        "concurrency::many_starts_of_a_container",
        Who::Both,
        many_starts_of_a_container,
    ),
    Case::container(
        "concurrency::the_server_goes_when_all_are_killed",
        Who::Both,
        the_server_goes_when_all_are_killed,
    ),
    Case::container(
        "concurrency::the_server_never_goes_before",
        Who::Both,
        the_server_never_goes_before,
    ),
];
