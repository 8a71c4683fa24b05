"""Builds the compiled library from csrc/; everything else is in pyproject.toml.
ALPHAKERNELS_BUILD=auto (default) | cpu | cuda | none says what is built. `auto` adds CUDA where nvcc and a CUDA build of PyTorch
are found. A missing or failing compiler never fails the install: the package then runs on its PyTorch reference and says so.
PyTorch's headers are looked up in the environment being installed into, so that pip's build isolation does no harm.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("csrc")
BUILD = os.environ.get("ALPHAKERNELS_BUILD", "auto").lower()
if BUILD not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(f"ALPHAKERNELS_BUILD must be auto, cpu, cuda or none, got {BUILD!r}")
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Each file of csrc/cpu is compiled once per instruction set; the processor chooses among them when the library is loaded.
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
ISA_FLAGS = {"portable": [], **({"avx2": ["-mavx2", "-mfma"], "avx512": AVX512} if X86 else {})}
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall"]


def cuda_archs():
    """Compute capabilities to compile for: those asked for, or of the usual ones those that this nvcc knows."""
    if "ALPHAKERNELS_CUDA_ARCHS" in os.environ:
        return os.environ["ALPHAKERNELS_CUDA_ARCHS"].split(";")
    usual = ["80", "90", "100"]
    if not shutil.which("nvcc"):
        return usual
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return [a for a in usual if f"compute_{a}" in known] or usual


# Machine code for each, and of the last PTX too, for GPUs yet newer.
CUDA_ARCHS = cuda_archs()
NVCC_CODE = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS]
NVCC_CODE.append(NVCC_CODE[-1].replace("code=sm", "code=compute"))
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", *NVCC_CODE]


def torch_home():
    """The folder of the installed torch: of this interpreter, or, in an isolated build, of the environment behind it."""
    found = importlib.util.find_spec("torch")
    homes = [Path(sysconfig.get_path("platlib"), "torch")] + ([Path(found.origin).parent] if found and found.origin else [])
    return next((home for home in homes if (home / "include" / "torch" / "csrc" / "stable").is_dir()), None)


TORCH = torch_home()


class BuildLibrary(build_ext):
    """Compiles every (source, instruction set) pair in parallel and links them into one library."""

    def build_extension(self, ext):
        if TORCH is None:
            raise CompileError("PyTorch >= 2.10 was not found; install it first to build the compiled kernels")
        # Kept from build to build, for every environment with this torch, until a source changes.
        out = CSRC.parent / "build" / "objects" / f"{zlib.crc32((TORCH / 'version.py').read_bytes()):08x}"
        macros = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")] + [("AK_X86", "1")] * X86
        cuda = ext.name.endswith("_cuda")
        if cuda and not shutil.which("nvcc"):
            raise CompileError("nvcc was not found; it compiles the CUDA kernels")
        jobs = [(s, isa) for s in ext.sources for isa in (ISA_FLAGS if Path(s).parent.name == "cpu" else ["once"])]

        def work(source, isa):
            by_nvcc = source.endswith(".cu")  # which the compiler of the rest does not know
            folder = out / ("-".join(["nvcc", *CUDA_ARCHS]) if by_nvcc else isa)
            target = folder / Path(source).with_suffix(".o" if by_nvcc or os.name != "nt" else ".obj")
            made_of = [p for p in ext.depends if p == source or not p.endswith((".cpp", ".cu"))]
            if target.exists() and target.stat().st_mtime > max(Path(p).stat().st_mtime for p in made_of):
                return str(target)
            if by_nvcc:
                return self.nvcc(source, target)
            of_isa = [("AK_ISA", isa)] * (isa in ISA_FLAGS) + [("USE_CUDA", "1")] * cuda
            given = {"macros": macros + of_isa, "include_dirs": [str(TORCH / "include")]}
            return self.compiler.compile([source], str(out / isa), **given, extra_postargs=FLAGS + ISA_FLAGS.get(isa, []))[0]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = list(pool.map(lambda job: work(*job), jobs))
        # Linked by name only: whatever torch the process has loaded serves the symbols.
        libraries = ["torch", "torch_cpu", "c10"] + ["torch_cuda"] * (cuda and any((TORCH / "lib").glob("*torch_cuda*")))
        if cuda:  # nvcc knows where its runtime is, and links it in
            link = ["nvcc", "-shared", *ext.extra_objects, f"-L{TORCH / 'lib'}", *(f"-l{name}" for name in libraries)]
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            if subprocess.call([*link, "-o", str(target)]):
                raise CompileError("nvcc failed to link the CUDA kernels")
            return
        ext.sources, ext.library_dirs, ext.libraries = [], [str(TORCH / "lib")], libraries
        super().build_extension(ext)

    def nvcc(self, source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if subprocess.call(["nvcc", *NVCC_FLAGS, "-c", source, "-o", str(target)]):
            raise CompileError(f"nvcc failed on {source}")
        return str(target)


def extensions():
    sources = [str(p) for folder in ("common", "cpu", "bindings") for p in sorted((CSRC / folder).glob("*.cpp"))]
    common = dict(language="c++", py_limited_api=True, optional=True, depends=["setup.py", *map(str, CSRC.rglob("*.*"))])
    found = [Extension("alphakernels._C", sources, **common)]
    cuda = [str(p) for p in [*sorted((CSRC / "cuda").glob("*.cu")), *sorted((CSRC / "bindings" / "cuda").glob("*.cpp"))]]
    auto = BUILD == "auto" and shutil.which("nvcc") and TORCH is not None and any((TORCH / "lib").glob("*torch_cuda*"))
    if cuda and (BUILD == "cuda" or auto):
        found.append(Extension("alphakernels._C_cuda", cuda, **common))
    return found


setup(
    ext_modules=extensions() if BUILD != "none" else [],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if BUILD != "none" else {},
    setup_requires=[] if TORCH is not None or BUILD == "none" else ["torch>=2.10"],
)
