use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::compose::service::Condition;
use crate::compose::variables::of_file;
use crate::compose::yaml;

fn read(file: &str, profiles: &[&str]) -> Result<Project, FileError> {
    let variables = of_file("TAG=16\nPORT=8080\n");
    let reader = Reader {
        variables: &variables,
        folder: Path::new("/srv/shop"),
    };
    let profiles: Vec<String> = profiles.iter().map(ToString::to_string).collect();
    Project::read(&reader, &yaml::parse(file)?, &profiles)
}

const SHOP: &str = r#"
name: shop
services:
  web:
    image: nginx
    container_name: front
    depends_on:
      app: {condition: service_started}
      setup: {condition: service_completed_successfully}
    ports:
      - "${PORT}:80"
      - target: 53
        published: 5353
        protocol: udp
        host_ip: 127.0.0.1
      - "9000-9001:90-91"
      - "443"
    networks:
      inner: {aliases: [www]}
      outer:
  app:
    image: "app:${TAG:-1}"
    command: python -m app --name 'a b'
    entrypoint: ["/bin/tini", "--"]
    environment: {DB: "db", EMPTY: "", OWN: }
    user: "1000:1000"
    working_dir: /srv
    volumes: [".:/srv:ro", "data:/data", /cache]
    networks: [inner]
    deploy: {resources: {limits: {cpus: "1.5", memory: 512m}}}
    labels: [a=b]
    x-own: 1
  setup:
    image: app
    network_mode: none
    restart: "no"
    read_only: true
    tmpfs: /tmp
    stop_grace_period: 1m30s
  debug:
    image: tools
    profiles: [debug]
    depends_on: [app]
networks:
  inner: {internal: true, ipam: {config: [{subnet: 10.33.0.0/24}]}}
  outer: {external: true, name: wide}
volumes:
  data:
"#;

#[test]
fn a_service_is_flags_of_run() {
    let project = read(SHOP, &[]).expect("a project");
    let names: Vec<&str> = project.services.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["app", "setup", "web"]);
    let [app, setup, web] = project.services.as_slice() else {
        panic!("three");
    };
    let flags = "--env|DB=db|--env|EMPTY=|--env|OWN|--user|1000:1000|--workdir|/srv|--volume|/srv/shop/.:/srv:ro|\
                 --volume|/cache|--cpus|2|--memory|512M|--entrypoint|/bin/tini";
    assert_eq!(app.flags.join("|"), flags);
    assert_eq!(app.command, ["--", "python", "-m", "app", "--name", "a b"]);
    assert_eq!(
        app.image.as_ref().map(|it| it.text.as_str()),
        Some("app:16")
    );
    let flags = "--publish|8080:80|--publish|127.0.0.1:5353:53/udp|--publish|9000:90/tcp|--publish|9001:91/tcp|\
                 --publish|443";
    assert_eq!(web.flags.join("|"), flags);
    assert_eq!(web.ports.len(), 4);
    assert_eq!(web.needs[1].condition, Condition::Completed);
    assert_eq!(
        setup.flags.join("|"),
        "--read-only|--tmpfs|/tmp|--stop-timeout|90"
    );
    assert_eq!(setup.networks, Some(Vec::new()));
    assert!(project.networks["inner"].ways.internal && project.networks["outer"].external);
    assert!(!project.networks.contains_key(DEFAULT));
    assert_eq!(read(SHOP, &["debug"]).expect("a project").services.len(), 4);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let service = |keys: &str| format!("services:\n  a:\n    image: x\n    {keys}\n");
    for (file, message) in [
        ("a: 1".into(), "line 1: the key a is not supported"),
        ("services: {}".into(), "line 1: the file has no services"),
        ("services: 5".into(), "line 1: services is a map"),
        (
            "services:\n  a: {}\n".into(),
            "line 2: service a has no image",
        ),
        (
            service("privilegd: true"),
            "line 4: service a: privilegd is not supported",
        ),
        (service("build: ."), "line 4: hull builds no images"),
        (
            service("restart: sometimes"),
            "line 4: sometimes: write no, on-failure",
        ),
        (
            service("restart: always:3"),
            "line 4: always:3: maximum retry count cannot be used",
        ),
        (
            service("deploy: {restart_policy: {condition: any}}"),
            "line 4: deploy: restart_policy is not supported",
        ),
        (
            service("healthcheck: {test: [curl, x]}"),
            "line 4: test: write [NONE], [CMD, PROGRAM",
        ),
        (
            service("healthcheck: {test: [CMD]}"),
            "line 4: test: write [NONE]",
        ),
        (
            service("healthcheck: {test: ' '}"),
            "line 4: test: it is empty",
        ),
        (
            service("healthcheck: {test: x, interval: 5}"),
            "line 4: 5: write numbers with units",
        ),
        (
            service("healthcheck: {test: x, timeout: 10us}"),
            "line 4: 10us: it cannot be less than 1ms",
        ),
        (
            service("healthcheck: {test: x, retries: -1}"),
            "line 4: -1: retries is a number",
        ),
        (
            service("healthcheck: {start_interval: 1s}"),
            "line 4: healthcheck: start_interval is not supported",
        ),
        (service("image: ${X}"), "line 4: image stands here twice"),
        (
            service("user: ${X}"),
            "line 4: user: the variable X has no value",
        ),
        (
            service("depends_on: [b]"),
            "line 4: b: depends_on names no service",
        ),
        (
            service("depends_on: [a]"),
            "line 2: services need each other in a circle: a -> a",
        ),
        (
            service("depends_on: {b: {condition: service_well}}"),
            "line 4: service_well: a condition is service_started, service_healthy",
        ),
        (
            service("depends_on: {b: {condition: service_completed_successfully}}")
                + "  b: {image: x, restart: always}\n",
            "line 4: b: the service is always started again",
        ),
        (
            service("ports: ['80:80', '127.0.0.1:80:81']"),
            "line 4: port 80 of the host is that of service a in line 4",
        ),
        (
            service("ports: ['0:80']"),
            "line 4: 0.0.0.0:0:80: write HOST:GUEST",
        ),
        (
            service("ports: ['1-3:1-2']"),
            "two ranges of the same length",
        ),
        (
            service("volumes: ['data:/x']"),
            "line 4: data: undefined volume",
        ),
        (
            service("volumes: ['./x:y']"),
            "line 4: a volume's target is an absolute path",
        ),
        (service("networks: [n]"), "line 4: n: undefined network"),
        (
            service("network_mode: host"),
            "line 4: host: network_mode is none or bridge",
        ),
        (
            service("command: 'a \"b'"),
            "line 4: a \"b: a quote is not closed",
        ),
        (
            service("env_file: nowhere"),
            "line 4: nowhere: there is no such file",
        ),
        (
            service("deploy: {replicas: 2}"),
            "line 4: 2: a service has one machine",
        ),
        (service("mem_limit: much"), "line 4: much: write a size"),
        (service("environment: {A: [1]}"), "line 4: A is a text"),
        (
            service("x-hull-kernel: /boot/vmlinuz"),
            "line 4: x-hull-kernel: /boot/vmlinuz is none of tiny and full",
        ),
        (
            service("platform: linux/arm64"),
            "line 4: linux/arm64: hull runs linux/amd64",
        ),
        (
            format!("{}networks: {{n: {{driver: overlay}}}}", service("x-a: 1")),
            "line 5: overlay: a network's driver",
        ),
        (
            format!("{}secrets: {{}}", service("x-a: 1")),
            "line 5: the key secrets is not supported",
        ),
    ] {
        let refused = read(&file, &[]).expect_err(&file).to_string();
        assert!(refused.contains(message), "{file}\n{refused}");
    }
}

/// The flags of a service with these keys, and whether the file has its health checked.
fn flags(keys: &str) -> (String, Option<bool>) {
    let file = format!("services: {{a: {{image: x, {keys}}}}}");
    let project = read(&file, &[]).expect(keys);
    let service = project.services.first().expect("one");
    (service.flags.join("|"), service.checks)
}

#[test]
fn restarts_and_checks_of_health_are_flags_of_run() {
    for (keys, expected, checks) in [
        ("restart: no", "", None),
        ("restart: always", "--restart|always", None),
        ("restart: unless-stopped", "--restart|unless-stopped", None),
        ("restart: 'on-failure:3'", "--restart|on-failure:3", None),
        (
            "healthcheck: {test: -f $$A || exit 1, interval: 1m30s, timeout: 0s, retries: 5, start_period: 500ms}",
            "--health-cmd=-f $A || exit 1|--health-interval|1m30s|--health-timeout|0s|--health-retries|5|\
             --health-start-period|500ms",
            Some(true),
        ),
        (
            "healthcheck: {test: [CMD-SHELL, 'a b']}",
            "--health-cmd=a b",
            Some(true),
        ),
        (
            "healthcheck: {test: [CMD, pg, -U, 'a \"b', $$X]}",
            "--health-cmd=exec pg -U 'a \"b' '$X'",
            Some(true),
        ),
        ("healthcheck: {retries: 2}", "--health-retries|2", None),
        (
            "healthcheck: {test: [NONE], retries: 2}",
            "--no-healthcheck",
            Some(false),
        ),
        (
            "healthcheck: {disable: true, test: x}",
            "--no-healthcheck",
            Some(false),
        ),
        ("x-hull-kernel: full", "--kernel|full", None),
        (
            "healthcheck: {disable: false, test: x}",
            "--health-cmd=x",
            Some(true),
        ),
    ] {
        assert_eq!(flags(keys), (expected.into(), checks), "{keys}");
    }
}

#[test]
fn services_and_networks_say_what_may_leave() {
    let file = "services:\n  a: {image: x, x-hull-allow: ['*.a.org:443', 10.1.0.0/16], x-hull-deny-private: true}\n  \
                b: {image: x, x-hull-allow: b.org, x-hull-deny-private: false}\n\
                networks:\n  default: {x-hull-allow: [c.org], x-hull-deny-private: true}\n";
    let project = read(file, &[]).expect("a project");
    let flags: Vec<String> = project
        .services
        .iter()
        .map(|it| it.flags.join(" "))
        .collect();
    let of_a = "--allow *.a.org:443 --allow 10.1.0.0/16 --deny-private";
    assert_eq!(flags, [of_a, "--allow b.org"]);
    let policy = &project.networks[DEFAULT].ways.policy;
    assert_eq!(
        (policy.allow[0].to_string(), policy.deny_private),
        ("c.org".into(), true)
    );
    for (keys, message) in [
        (
            "x-hull-allow: [a..b]",
            "line 4: x-hull-allow: \"a..b\": it is no address",
        ),
        (
            "x-hull-allow: []",
            "line 4: x-hull-allow names no destination",
        ),
        (
            "x-hull-deny-private: 7",
            "line 4: 7: x-hull-deny-private is true or false",
        ),
        // A mistake here would let out what the file means to refuse.
        (
            "x-hull-alow: a.org",
            "line 4: service a: x-hull-alow is not supported",
        ),
    ] {
        let file = format!("services:\n  a:\n    image: x\n    {keys}\n");
        let refused = read(&file, &[]).expect_err(keys).to_string();
        assert!(refused.contains(message), "{refused}");
    }
    for (keys, message) in [
        (
            "internal: true",
            "line 3: nothing leaves an internal network",
        ),
        ("external: true", "line 3: hull network create gives"),
    ] {
        let rest = "services: {a: {image: x}}\nnetworks:\n";
        let file = format!("{rest}  n: {{{keys}, x-hull-deny-private: true}}\n");
        let refused = read(&file, &[]).expect_err(keys).to_string();
        assert!(refused.contains(message), "{refused}");
    }
}

#[test]
fn what_is_to_be_healthy_has_a_check() {
    let project = |keys: &str| {
        let file = format!(
            "services:\n  a:\n    image: x\n    depends_on:\n      b: {{condition: service_healthy}}\n  \
             b: {{image: y, {keys}}}\n"
        );
        read(&file, &[]).expect("a project")
    };
    for (keys, of_image, fits) in [
        ("x-a: 1", false, false),
        ("x-a: 1", true, true),
        ("healthcheck: {test: x}", false, true),
        ("healthcheck: {retries: 1}", false, false),
        ("healthcheck: {disable: true}", true, false),
    ] {
        let checked = project(keys).check_health(|image| image == "y" && of_image);
        match fits {
            true => assert_eq!(checked, Ok(()), "{keys}"),
            false => {
                let refused = checked.expect_err(keys).to_string();
                let message = "line 5: b: the service has no health check";
                assert!(refused.contains(message), "{refused}");
            }
        }
    }
}

#[test]
fn circles_and_missing_profiles_are_named() {
    let file = "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [c]}\n  \
                c: {image: x, depends_on: [b]}\n";
    let refused = read(file, &[]).expect_err("a circle").to_string();
    assert_eq!(
        refused,
        "line 3: services need each other in a circle: b -> c -> b"
    );
    let file = "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, profiles: [p]}\n";
    let refused = read(file, &[]).expect_err("a profile").to_string();
    assert!(refused.contains("add --profile"), "{refused}");
    assert_eq!(read(file, &["p"]).expect("both").services.len(), 2);
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(
        lines in prop::collection::vec((0..40usize, "[a-z0-9:./${}\\[\\]-]{0,12}"), 0..4),
    ) {
        let mut file: Vec<String> = SHOP.lines().map(String::from).collect();
        for (at, text) in lines {
            if let Some(line) = file.get_mut(at) {
                let key = line.split(':').next().unwrap_or_default().to_string();
                *line = format!("{key}: {text}");
            }
        }
        let _ = read(&file.join("\n"), &["debug"]);
    }
}
