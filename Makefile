# Every target sets up .venv by itself; the second time that takes no time.
PYTHON ?= python3
# Only one named in this very command is another Python, not one of the shell.
NAMED = $(if $(filter command,$(origin PYTHON)),NEW_PYTHON=1)
COURSE = @$(NAMED) $(PYTHON) tools/bootstrap.py -m

.PHONY: help lab test check run refresh book serve assignments grade formgrade grade-selftest \
	kernels bench lint doctor clean

help: ## what each target does (this list)
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' Makefile | expand -t 22

lab: ## study: JupyterLab on study/, your copy of the chapters [PORT=8888] [TORCH_INDEX=…]
	$(COURSE) tools.study.lab --port "$(PORT)"

test: ## everything: lint, unit tests, kernels, every notebook executed and its proofs compared
	$(COURSE) tools.study.suite

check: ## what your change can have broken, in 3 minutes [SINCE=main~3]
	$(COURSE) tools.study.suite --only check --since "$(SINCE)"

run: ## execute one chapter without a browser: CHAPTER=00 [RUN=minute|coffee|gpu]
	$(COURSE) tools.study.run --chapter "$(CHAPTER)" --tier "$(or $(RUN),minute)"

refresh: ## execute all chapters, or one, and store their outputs, for authors [CHAPTER=00]
	$(COURSE) tools.study.refresh --chapter "$(CHAPTER)"

book: ## render the book into _build/html/
	$(COURSE) tools.book.site

serve: ## render the book and show it in a browser [PORT=8000]
	$(COURSE) tools.book.site --serve "$(or $(PORT),8000)"

assignments: ## the students' versions of the assignments, in marks/release/
	$(COURSE) tools.grading.release

grade: ## grade what was handed in: SUBMISSIONS=folder [JOBS=2] [LIMITS="cell=60"] [UNSAFE=1]
	$(COURSE) tools.grading.grade --submissions "$(SUBMISSIONS)" --jobs "$(JOBS)" \
		--limits "$(LIMITS)" --unsafe "$(UNSAFE)"

formgrade: ## mark written answers in a browser, in nbgrader's formgrader [PORT=8888]
	$(COURSE) tools.grading.formgrade --port "$(PORT)"

grade-selftest: ## the grader graded: right, wrong and hostile submissions [JOBS=2]
	$(COURSE) tools.grading.selftest --jobs "$(JOBS)"

kernels: ## Triton kernels without a GPU: interpreted against references, compiled for two GPUs
	$(COURSE) tools.study.suite --only kernels

bench: ## race the ops against their peers, 3 minutes on a CPU [ONLY="norm attention"] [KEEP=1]
	$(COURSE) bench $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep)

lint: ## ruff on code and notebooks
	$(COURSE) tools.study.suite --only lint

doctor: ## what this machine can run
	$(COURSE) aigc_lib.doctor

clean: ## remove what the targets above have made, but not .venv, study/ or marks/
	rm -rf build _build .pytest_cache .ruff_cache
