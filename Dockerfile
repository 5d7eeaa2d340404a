# Jupyter with the course and the gallery, for x86-64, which PISA has wheels for:
# docker build --platform linux/amd64 -t mechir-course .
# docker run --platform linux/amd64 --rm -p 8888:8888 mechir-course
FROM python:3.12-slim

RUN useradd --create-home student
WORKDIR /home/student/pyterrier_mechir
COPY --chown=student . .
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir ".[lab]" jupyterlab

USER student
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "examples/course"]
