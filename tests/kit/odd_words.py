"""Words that are typed where others are expected: values of options, and whole command lines."""

NUMBERS = [
    "0",
    "-1",
    "-0",
    "1.5",
    "",
    "x",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1000000000",
    "9" * 30,
    "9" * 5000,
    "٣",
    "0x10",
    " 7 ",
    "+",
    "1_0",
    "\0",
    "1\n2",
    "--",
    "1e999",
    "²",
]
WORDS = [
    "",
    " ",
    ",",
    ",,",
    "-",
    "--",
    "x",
    "é日本語🦆",
    "a\0b",
    "\udcff\udc80",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "x" * 100_000,
    "line\nline",
    "\rover",
    "\t",
    "null",
    "nan",
    "NS",
    "ns1",
    "NS999",
    "*",
    "../..",
    "own,own",
    "a=b",
    "=",
    "%s",
    "{}",
    "[bold]",
    "\u202egnp",
    "🏳️‍🌈",
    "\x00",
    "'",
    '"',
    "; touch stolen",
    "$(touch stolen)",
    "1h1h",
    "0s",
    "1e99h",
    "99999999999h",
    "own",
    "none,none",
    "speed",
    "cpu",
    "cuda:99",
    "meta",
    "mps",
    "quick",
    "digits",
]

#: Lines whose words contradict each other, stand twice, or are too few or too many.
COMMANDS = """\

--
-
-x
--version --version
--version=3
--help=3
-h -h
nothing
study nothing
study run
study run --all --demo
study run --all my_claim.py
study run --demo --all --json
study run my_claim.py my_claim.py --seeds 2 --seeds 3 --workers 1 --out out --out out --json --json
study run my_claim.py --preset quick --preset slow --out out
study run my_claim.py --seeds
study run --seeds 3
study run my_claim.py noisy-batchnorm nothing --out out
study run my_claim.py --no-extend
study run -- --all
study show
study show my_claim.py x
study new
study new a.py b.py
study new my_claim.py
study new a.txt
study new nodir/x.py
study new 1.py
study new .py
study new class.py
study new noisy-batchnorm.py
study calibrate --seeds 2 --seeds 2 --studies 20 --studies 20
study calibrate --seeds 2 --studies 19
study list x
study list --json --json
explain
explain a b
explain --json
explain probe: --json
explain probe:probe:x
explain :
explain ./my_claim.py
explain question:nothing
explain noisy_batchnorm
check
check script.py:make --state-dict x
check script.py:make --config a --no-config
check script.py:make --out x.pt
check script.py:make --fix --out x.txt
check script.py:make --fix --out no/x.pt
check script.py:make --fix --out script.py
check --state-dict x --fix
check script.py:make script.py:make
check script.py
check script.py:
check :make
check script.py::make
check script:make.make
check script.py:nothing
check json:loads
check sys:exit
check os:_exit
check builtins:input
check script.py:__name__
check script.py:torch
check script.py:torch.nn.Linear
check script.py:loss
check script.py:make --select NS103 --ignore NS103
check script.py:make --select NS103 --batches 1000000000
check script.py:make --select NS103 --timeout -1
check script.py:make --select NS103 --timeout nan
check script.py:make --select NS103 --timeout 0
check script.py:make --select NS103 --timeout inf
check script.py:make --select NS103 --timeout 1e300
check script.py:make --select NS103 --json --format sarif
check --explain NS1
check --explain
check --explain NS101 --json --format github
check --explain x y
compare
compare script.py
compare script.py:make script.py:make
compare a=script.py:make a=script.py:make
compare a=script.py:make
compare =script.py:make
compare a= b=
compare script.py:make --arms own
compare script.py:make --arms own,own --out out
compare script.py:make --arms nothing --out out
compare script.py:make --arms , --out out
compare script.py:make --rates 0 --out out
compare script.py:make --rates -1 --out out
compare script.py:make --rates nan --out out
compare script.py:make --rates inf,1 --out out
compare script.py:make --rates 1,1,1 --steps 3 --questions speed --seeds 1 --workers 1 --out out
compare script.py:make --rates , --out out
compare script.py:make --rates 1e-400 --out out
compare script.py:make --steps 1 --out out
compare script.py:make --steps 1000000000000 --out out
compare script.py:make --seeds 1000000000 --steps 3 --out out
compare script.py:make --budget 0 --out out
compare script.py:make --budget 1s --out out
compare script.py:make --budget -3min --out out
compare script.py:make --questions nothing --out out
compare script.py:make --export docx --out out
compare script.py:make --export , --out out
compare --list x
compare --list --json
compare script.py:make --batches 1000000000 --steps 3 --seeds 1 --questions speed --workers 1 --out out
compare script.py:make --workers 1000000000 --steps 3 --seeds 1 --questions speed --out out
demo x
demo --seeds 0
demo --seeds 1000000000
demo --workers 0
example
example x
example --json
probes
probes --json x
layers
layers --jsn
rules x
rules --json --json
report
report a b
report scope --condense c.json
report scope --markdown m.md --page out/p.html
report scope --page p.txt
report scope --questions q.md
report my_claim.py
report . --condense c.json
report scope --study my_claim.py --page out/p.html
report scope --study nothing.py
report scope --page scope/run.json
report scope --page .html
report scope --page scope
watch
watch a b
watch script.py
watch scope --port 99999
watch scope --port -1
watch scope --host nowhere.invalid
watch scope --host 8.8.8.8
watch scope --token short
watch scope --port 1
completion
completion tcsh
completion bash zsh
bench
bench nothing
bench probes --model gpt
bench probes --model mlp --model gpt
bench probes --rounds 1000000000 --case nothing
bench layers --only nothing
bench layers --device cuda
bench layers --device tpu
bench layers --rows --device cuda
bench layers --rows --only nothing
bench layers --allocator x --allocator default
bench check --select NS999
bench check --select ,
bench layers --compiled --no-compiled --only nothing
study run my_claim.py --seeds 1000000000 --workers 1 --out out
study run my_claim.py --seeds 2 --workers 1000000000 --out out
study run my_claim.py --seeds 2 --device cuda --out out
study run my_claim.py --seeds 2 --workers 1 --out out --executor nothing
study run my_claim.py --seeds 2 --workers 1 --out out --executor :
study run my_claim.py --seeds 2 --workers 1 --out out --executor local:x=1
study run my_claim.py --seeds 2 --workers 1 --out out --executor slurm:nothing=1
study run my_claim.py --seeds 2 --workers 1 --out out --executor ray:=
study run my_claim.py --seeds 2 --workers 1 --out out --executor json:loads
study run my_claim.py --seeds 2 --workers 1 --out out --shard 0/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 3/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/0
study run my_claim.py --seeds 2 --workers 1 --out out --shard -1/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/1000000000
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/2 --extend
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/2/3
study calibrate --studies 20 --seeds 2 --executor nothing
compare script.py:make --executor nothing --out out
compare script.py:make --shard x/y --out out
compare script.py:make --shard 1/2 --budget 1h --out out
study run my_claim.py --seeds 2 --workers 1 --out s3://
study run my_claim.py --seeds 2 --workers 1 --out ftp://host/runs
report s3://
report gopher://host/runs
study run my_claim.py --seeds 2 --device cpu:7 --workers 1 --out out
study run my_claim.py --seeds 2 --workers 1 --out ~/mine
report ~
report ~/nothing
compare script.py:make --out ~no-such-user/x"""
